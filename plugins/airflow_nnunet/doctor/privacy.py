"""Finds for the doctor patient data that every user of the machine may read, although ``sharing`` excludes others."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from airflow_nnunet.doctor.finding import Finding
from nnunet_jobs.contract.storage.workspace import WRITTEN_ROOTS, Workspace

# Limit on folders and files checked in each root. A warning needs only one, and the doctor must answer in seconds.
_MOST_LOOKED_AT = 200_000


def examine_privacy(workspace: Workspace) -> Iterator[Finding]:
    """Yield a finding for each root with files that others may read, from an earlier version or another setting."""
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
        # Only the folder is named, because chmod -R would change a user's own source files through hard links.
        yield Finding(
            topic=name, ok=False,
            text=f"patient data can be read by every user of this machine, such as {found}, although sharing={workspace.sharing!r}; "
            f"close the folder above it: chmod o-rwx {root}",
        )  # fmt: skip
    if not open_roots:
        yield Finding(topic="privacy", text=f"sharing={workspace.sharing!r}, and other users can read no patient data")


def _readable_by_others(root: Path) -> Path | None:
    """Return a file below a folder that everybody can read, through all folders above it, or None."""
    real = Path(os.path.realpath(root))
    if not real.is_dir() or not all(_open(parent, stat.S_IXOTH) for parent in (real, *real.parents)):
        return None
    left, folders = _MOST_LOOKED_AT, [real]
    while folders and left > 0:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:  # it belongs to another user, or was removed in the meantime
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
