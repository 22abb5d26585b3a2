"""For the doctor: patient data that every user of the machine may read, although sharing says that others get nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from airflow_nnunet.doctor.finding import Finding
from nnunet_jobs.contract.storage.workspace import WRITTEN_ROOTS, Workspace

# Folders and files looked at in each root: a warning needs one, and the doctor must answer in seconds.
_MOST_LOOKED_AT = 200_000


def examine_privacy(workspace: Workspace) -> Iterator[Finding]:
    """A finding for each root with files that others may read: made by an earlier version, by hand, or under another setting."""
    if workspace.sharing == "group_others_read":
        return
    roots = [(name, Path(getattr(workspace, name))) for name in WRITTEN_ROOTS]
    roots += [("output_roots", Path(root)) for root in workspace.output_roots]
    open_roots = 0
    for name, root in roots:
        found = _readable_by_others(root)
        if found is None:
            continue
        open_roots += 1
        # The folder alone: chmod -R would reach a user's own source files through hard links.
        yield Finding(
            topic=name, ok=False,
            text=f"patient data is readable for every user of this machine, such as {found}, although sharing={workspace.sharing!r}; "
            f"close the folder above it: chmod o-rwx {root}",
        )  # fmt: skip
    if not open_roots:
        yield Finding(topic="privacy", text=f"sharing={workspace.sharing!r}, and nothing of patients is readable for other users")


def _readable_by_others(root: Path) -> Path | None:
    """A file below a folder that everybody may read, with every folder on the way open; None where there is none."""
    real = Path(os.path.realpath(root))
    if not real.is_dir() or not all(_open(parent, stat.S_IXOTH) for parent in (real, *real.parents)):
        return None
    left, folders = _MOST_LOOKED_AT, [real]
    while folders and left > 0:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:  # another user's, or gone meanwhile
            continue
        left -= len(entries)
        for entry in entries:
            if entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                if _open(Path(entry.path), stat.S_IXOTH):
                    folders.append(Path(entry.path))
            elif _open(Path(entry.path), stat.S_IROTH):
                return Path(entry.path)
    return None


def _open(path: Path, right: int) -> bool:
    try:
        return bool(path.lstat().st_mode & right)
    except OSError:
        return False
