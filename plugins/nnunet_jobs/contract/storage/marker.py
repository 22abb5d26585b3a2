"""Marks the workspace's roots, to check that a share is mounted before anything is written to its place.

Each root has a file ``.nnunet-workspace``. The one in ``jobs`` names the workspace's other marked roots; each of the others names the
``jobs`` folders that use it. So every root knows the rest: if one of them is marked and another one has no marker any more, that
other one is not mounted, and nothing is made there.

The first job of a workspace marks it. That is refused if a share may be missing: below a mount point of ``/etc/fstab`` that is not
mounted, and in an empty folder that is not a mount point and was not made by this user. :func:`mark_workspace` marks it in any case,
at a person's request.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from nnunet_jobs.contract.failure import Lost
from nnunet_jobs.contract.storage.files import read_json, write_record
from nnunet_jobs.contract.storage.permissions import make_root, workspace_umask
from nnunet_jobs.contract.storage.workspace import SHARED_ROOTS, Workspace

log = logging.getLogger("nnunet_jobs")

MARKER = ".nnunet-workspace"
OTHER_ROOTS = (*SHARED_ROOTS, "leases")
FSTAB, MOUNTS = Path("/etc/fstab"), Path("/proc/self/mounts")
_LOOK_AGAIN_S = 1.0
_CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_FIX = "mount the share, or, if nothing should be mounted there, run once: airflow nnunet mark-workspace"


class NotMounted(Lost):
    """A root of the workspace is missing because its share is not mounted. A retry may find it."""


class MarkedWorkspaces(Protocol):
    """Remembers outside the workspace which ones were marked, in case one share holds all roots."""

    def recall(self, jobs: str) -> str | None:
        """Return the id of the workspace that was marked under this ``jobs`` folder, None if none was."""

    def remember(self, jobs: str, workspace: str) -> None:
        """Remember that it is marked."""


def read_marker(root: str | Path) -> dict[str, Any] | None:
    """Read a root's marker; return None if there is none.

    Raises:
        OSError: The storage does not answer.
    """
    try:
        data: dict[str, Any] = read_json(Path(root) / MARKER)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return data


def open_workspace(workspace: Workspace, *, memory: MarkedWorkspaces | None = None) -> None:
    """Check that all roots exist, and make and mark ``jobs`` if this is the workspace's first job.

    Args:
        memory: Used only if ``jobs`` has no marker.

    Raises:
        NotMounted: A root has lost its marker, or its share may be missing. Nothing is made.
        OSError: The storage does not answer, or this user may not write there.
    """
    marker, reason = _look(workspace)
    if marker is None:
        if reason is not None:
            raise NotMounted(f"jobs: {workspace.jobs}: {reason}; {_FIX}")
        if memory is not None and memory.recall(workspace.jobs) is not None:
            reason = f"no marker {MARKER}, although jobs have run in this workspace"
            raise NotMounted(f"jobs: {workspace.jobs}: {reason}; {_FIX}")
        marker = _mark_jobs(workspace)
        if memory is not None:
            memory.remember(workspace.jobs, marker["workspace"])
    for name, path in lost_roots(workspace, marker):
        raise NotMounted(f"{name}: {path}: its marker {MARKER} is gone; {_FIX}")
    _mark_others(workspace, marker, [name for name in OTHER_ROOTS if _filled(Path(getattr(workspace, name)))])


def require_mounted(workspace: Workspace) -> None:
    """Check that no share of the workspace is missing, before writing to it without a job. Nothing is made or marked.

    Raises:
        NotMounted: A root has lost its marker, or its share may be missing.
        OSError: The storage does not answer.
    """
    marker, reason = _look(workspace)
    if reason is not None:
        raise NotMounted(f"jobs: {workspace.jobs}: {reason}; {_FIX}")
    for name, path in lost_roots(workspace, marker or {"roots": {}}):
        raise NotMounted(f"{name}: {path}: its marker {MARKER} is gone; {_FIX}")


def mark_workspace(workspace: Workspace, *, memory: MarkedWorkspaces | None = None) -> None:
    """Make and mark ``jobs``, and mark the other existing roots, regardless of earlier markers."""
    marker = {**_mark_jobs(workspace), "roots": {}}
    _mark_others(workspace, marker, [name for name in OTHER_ROOTS if os.path.isdir(getattr(workspace, name))])
    with workspace_umask(workspace):
        write_record(Path(workspace.jobs) / MARKER, marker)
    if memory is not None:
        memory.remember(workspace.jobs, marker["workspace"])


def lost_roots(workspace: Workspace, marker: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Return (name, path) of the shared roots that were marked, by the marker of ``jobs``, and are not any more."""
    for name, path in marker["roots"].items():
        if path == getattr(workspace, name) and read_marker(path) is None:
            yield name, path


def missing_share(workspace: Workspace) -> str | None:
    """Say why the share of an unmarked ``jobs`` folder may not be mounted; None if a new workspace may begin there."""
    jobs = Path(workspace.jobs)
    if (point := unmounted_point(jobs)) is not None:
        return f"{FSTAB} names the mount point {point}, and nothing is mounted there"
    for name in OTHER_ROOTS:
        root = getattr(workspace, name)
        other = read_marker(root)
        if other is not None and workspace.jobs in other.get("jobs", {}):
            return f"no marker {MARKER}, although {name} ({root}) names it as the place of this workspace's jobs"
    place = jobs.parent
    if place.is_dir() and not any(place.iterdir()) and not os.path.ismount(place) and _not_ours(place):
        return f"no marker {MARKER}, and {place} is empty and not a mount point: a share may be missing there"
    return None


def _not_ours(place: Path) -> bool:
    """Whether an empty folder may be a mount point: root owns those, while this user's own folder was made for the workspace."""
    return os.geteuid() == 0 or place.stat().st_uid != os.geteuid()


def unmounted_point(path: str | Path) -> Path | None:
    """Return the mount point of ``/etc/fstab`` at or above a path on which nothing is mounted now."""
    mounted = set(_mount_points(MOUNTS))
    real = Path(os.path.realpath(path))
    for point in _mount_points(FSTAB):
        if point != "/" and point not in mounted and real.is_relative_to(point) and os.path.isdir(point):
            return Path(point)
    return None


def _mount_points(table: Path) -> list[str]:
    try:
        lines = table.read_text(errors="replace").splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    found = [parts[1] for parts in fields if len(parts) > 2]
    return [point.replace("\\040", " ") for point in found if point.startswith("/")]


def _look(workspace: Workspace) -> tuple[dict[str, Any] | None, str | None]:
    """Return the marker of ``jobs``, or why none may be made. A refusal is checked again, since another first job may make it now."""
    until = time.monotonic() + _LOOK_AGAIN_S
    while (marker := read_marker(workspace.jobs)) is None and (reason := missing_share(workspace)) is not None:
        if time.monotonic() >= until:
            return None, reason
        time.sleep(_LOOK_AGAIN_S / 10)
    return marker, None


def _mark_jobs(workspace: Workspace) -> dict[str, Any]:
    """Make ``jobs`` and give it a marker; an existing one stays."""
    with workspace_umask(workspace):
        _make(workspace, workspace.jobs)
        marker = read_marker(workspace.jobs)
        if marker is None:
            marker = {"workspace": secrets.token_hex(8), "host": socket.gethostname(), "roots": {}}
            write_record(Path(workspace.jobs) / MARKER, marker)
            log.info("marked %s as the jobs folder of workspace %s", workspace.jobs, marker["workspace"])
    return marker


def _mark_others(workspace: Workspace, marker: dict[str, Any], names: Iterable[str]) -> None:
    """Mark these roots, and note the shared ones in the marker of ``jobs``. A root that this user cannot write stays unmarked.

    The lease ledger is marked but not noted, since each host has its own and a host without it is in order.
    """
    added = False
    for name in names:
        root = getattr(workspace, name)
        if marker["roots"].get(name) == root:
            continue
        try:
            found = read_marker(root) or {"jobs": {}}
            if found["jobs"].get(workspace.jobs) != marker["workspace"]:
                with workspace_umask(workspace):
                    write_record(Path(root) / MARKER, {"jobs": {**found["jobs"], workspace.jobs: marker["workspace"]}})
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            continue
        if name in SHARED_ROOTS:
            marker["roots"][name] = root
            added = True
    if added:
        try:
            with workspace_umask(workspace):
                write_record(Path(workspace.jobs) / MARKER, marker)
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise


def _make(workspace: Workspace, root: str) -> None:
    make_root(workspace, Path(root))
    Path(root).mkdir(parents=True, exist_ok=True)


def _filled(root: Path) -> bool:
    """Whether a root exists and is not empty; an empty one may be an empty mount point."""
    try:
        return any(root.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
