"""Sets the permissions of new files and shared roots, and explains missing permissions to users.

Images, segmentations and reports are patient data, so only their owner may use new files and folders (``private``), unless the site
shares them with a group. Mode, owner and ACL of existing files are never changed. That includes a user's source files, which may be
hard-linked into the workspace: their mode stays, and the folders above them are closed. The kernel applies a folder's default POSIX
ACLs to new files below it, instead of the umask. Files that identify patients are always private.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from nnunet_jobs.contract.failure import JobError
from nnunet_jobs.contract.storage.workspace import ROOTS, SHARING, Workspace


def workspace_umask(workspace: Workspace) -> contextlib.AbstractContextManager[None]:
    """Set the umask of ``sharing`` for new files and folders, and restore the process's own umask afterwards."""
    return umask_for(workspace.sharing)


@contextlib.contextmanager
def umask_for(sharing: str) -> Iterator[None]:
    """Do the same as :func:`workspace_umask` without a workspace."""
    before = os.umask(SHARING[sharing])
    try:
        yield
    finally:
        os.umask(before)


class _InWorkspace(Protocol):
    @property
    def workspace(self) -> Workspace: ...


_Params = TypeVar("_Params")
_Context = TypeVar("_Context", bound=_InWorkspace)
_Result = TypeVar("_Result")


def with_workspace_umask(run: Callable[[_Params, _Context], _Result]) -> Callable[[_Params, _Context], _Result]:
    """Decorate a step's ``run`` so that its new files have the umask of ``sharing``, whatever the caller's umask is."""

    @functools.wraps(run)
    def shared(params: _Params, context: _Context) -> _Result:
        with workspace_umask(context.workspace):
            return run(params, context)

    return shared


def apply_permissions(workspace: Workspace) -> None:
    """Set the umask for the rest of this process and its children, and make a group's missing roots.

    Raises:
        PermissionError: A root cannot be made.
    """
    os.umask(SHARING[workspace.sharing])
    if has_group_access(workspace):
        for root in (*(getattr(workspace, name) for name in ROOTS), *workspace.output_roots):
            try:
                make_root(workspace, Path(root))
            except OSError as error:
                # A container sees only the roots that its step works with, and the rest of its file system is read-only.
                if error.errno != errno.EROFS:
                    raise


def make_root(workspace: Workspace, root: Path) -> None:
    """Make a missing folder, and those above it, so that everything below belongs to the folder's group (setgid).

    Does nothing if nothing is shared; the folder is then made when needed. Call it under :func:`workspace_umask`.
    """
    missing: list[Path] = []
    while has_group_access(workspace) and not os.path.exists(root):
        missing.append(root)
        root = root.parent
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            folder.mkdir()
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_ISGID)


def has_group_access(workspace: Workspace) -> bool:
    """Whether a group shares the workspace."""
    return workspace.sharing != "private"


def make_folder(workspace: Workspace, folder: Path) -> None:
    """Make a missing folder, and those above it, with their modes set one by one.

    For processes whose umask cannot be changed for a moment, because it is the umask of all their threads.
    """
    missing: list[Path] = []
    while not os.path.exists(folder):
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            path.mkdir(mode=0o700)
            if has_group_access(workspace):
                path.chmod(0o2777 & ~SHARING[workspace.sharing])


def file_mode(workspace: Workspace) -> int:
    """Return the mode of a new file, for code that sets modes one by one."""
    return 0o666 & ~SHARING[workspace.sharing]


def permission_problem(workspace: Workspace, root: Path) -> str | None:
    """Say why several users cannot use an existing root although ``sharing`` requires it, with the fix; None if they can."""
    if not has_group_access(workspace) or not root.is_dir():
        return None
    mode = root.stat().st_mode
    wanted = 0o2777 & ~SHARING[workspace.sharing]
    if mode & 0o2070 == 0o2070:
        return None
    return (
        f"{describe_permissions(root)}, which sharing={workspace.sharing!r} needs to be {wanted:o}; its owner runs: chmod {wanted:o} {root}"
    )


# --- messages to users without permission -----------------------------------------------------------------------------
def permission_error(error: BaseException) -> OSError | None:
    """Return the permission error that an error is or was caused by; None if there is none, or a step has handled it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, JobError):
        if isinstance(seen, OSError) and seen.errno in (errno.EACCES, errno.EPERM):
            return seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def explain_permission_error(error: OSError, *, hidden: Sequence[str] = ()) -> str:
    """Describe a permission error: the path, the user, the owner, and the fix.

    Args:
        hidden: Folders below which names may identify patients; only the folder itself is named.
    """
    paths = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not paths:
        return f"permission denied ({error.strerror}) for {whoami()}"
    blocked = next((found for path in paths if (found := blocking_path(path))), paths[0])
    asked, place = _shown(paths[0], hidden), _shown(blocked, hidden)
    if place != str(blocked):
        owner = describe_permissions(blocked).removeprefix(f"{blocked} ")
        return f"{asked}: permission denied for {whoami()}; something below it {owner}. Fix: as this user, find {place} ! -readable"
    return f"{asked}: permission denied for {whoami()}; {describe_permissions(blocked)}. Fix: {_permission_fix(blocked)}"


def blocking_path(path: Path) -> Path | None:
    """Find what denies access to a path: the first folder above that this process may not enter, the path, or its folder."""
    for parent in reversed(path.parents):
        if os.path.lexists(parent) and not os.access(parent, os.X_OK, effective_ids=True):
            return parent
    if os.path.lexists(path) and not path.is_symlink():
        wanted = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
        if not os.access(path, wanted, effective_ids=True):
            return path
    there = path.parent
    while not os.path.exists(there):
        there = there.parent
    return there if not os.access(there, os.W_OK, effective_ids=True) else path if os.path.lexists(path) else None


def describe_permissions(path: Path) -> str:
    """Describe owner, group and mode of a path."""
    try:
        status = path.lstat()
    except OSError:
        return f"{path} cannot be inspected"
    return f"{path} belongs to {_user(status.st_uid)}:{_group(status.st_gid)} with mode {stat.filemode(status.st_mode)}"


def whoami() -> str:
    """Describe this process's user and groups."""
    groups = sorted({os.getegid(), *os.getgroups()})
    return f"user {_user(os.geteuid())} (groups {', '.join(map(_group, groups))})"


def _permission_fix(path: Path) -> str:
    try:
        status = path.lstat()
    except OSError:
        return "ask its owner for access"
    group, mine = _group(status.st_gid), {os.getegid(), *os.getgroups()}
    writable = f"chmod -R g+rwX {path}" + (" (and chmod g+s, to keep the group)" if stat.S_ISDIR(status.st_mode) else "")
    if status.st_gid not in mine:
        return f"add {_user(os.geteuid())} to the group {group}, or let its owner give it to a common group (chgrp -R, then {writable})"
    return f"its owner runs {writable}; with sharing = group in section [nnunet] new files are like that from the start"


def _shown(path: Path, hidden: Sequence[str]) -> str:
    real = Path(os.path.abspath(path))
    for folder in hidden:
        if real != Path(folder) and real.is_relative_to(folder):
            return folder
    return str(path)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
