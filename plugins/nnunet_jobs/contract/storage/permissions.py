"""Who may read what is made: which permissions new files get, how shared roots are made, and what is said to a user without rights.

Images, segmentations and reports are patient data, so new files and folders are their owner's alone (``private``) unless the site says
that a group works together. Nothing that is there already is ever changed: not its mode, owner or ACL. That holds for a user's source
files, too, which may be hard-linked into the workspace: their mode stays, and the folders above them are closed. Default POSIX ACLs of a
folder are the kernel's business; it applies them to all that is made below, instead of the umask. Files that identify patients stay
their owner's alone.
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
    """Make new files and folders for whom ``sharing`` says, for a while; the process's own umask comes back afterwards."""
    return umask_for(workspace.sharing)


@contextlib.contextmanager
def umask_for(sharing: str) -> Iterator[None]:
    """:func:`workspace_umask` where there is no workspace."""
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
    """Decorator of a step's ``run``: what it makes is for whom ``sharing`` says, whoever calls it and with whatever umask."""

    @functools.wraps(run)
    def shared(params: _Params, context: _Context) -> _Result:
        with workspace_umask(context.workspace):
            return run(params, context)

    return shared


def apply_permissions(workspace: Workspace) -> None:
    """The same for the rest of this process and its children, and make the roots of a group that are missing.

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
    """Make a missing folder, and those above it, so that all that is ever made below belongs to the folder's group (setgid).

    Does nothing where nothing is shared: whoever needs the folder makes it. Call it under :func:`workspace_umask`.
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
    """Whether a group works together in it."""
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
    """Mode of a new file, where it is set one by one."""
    return 0o666 & ~SHARING[workspace.sharing]


def permission_problem(workspace: Workspace, root: Path) -> str | None:
    """Why an existing root is not fit for several users although ``sharing`` asks for it, with the fix; None when it is."""
    if not has_group_access(workspace) or not root.is_dir():
        return None
    mode = root.stat().st_mode
    wanted = 0o2777 & ~SHARING[workspace.sharing]
    if mode & 0o2070 == 0o2070:
        return None
    return (
        f"{describe_permissions(root)}, which sharing={workspace.sharing!r} needs to be {wanted:o}; its owner runs: chmod {wanted:o} {root}"
    )


# --- what is said to a user without rights ----------------------------------------------------------------------------
def permission_error(error: BaseException) -> OSError | None:
    """The kernel's refusal for want of rights that an error is or comes from; None where there is none, or a step has judged it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, JobError):
        if isinstance(seen, OSError) and seen.errno in (errno.EACCES, errno.EPERM):
            return seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def explain_permission_error(error: OSError, *, hidden: Sequence[str] = ()) -> str:
    """A refusal in words: which path, as whom, whose it is, and the fix.

    Args:
        hidden: Folders below which names may tell of patients; only the folder itself is named.
    """
    paths = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not paths:
        return f"permission denied ({error.strerror}) for {whoami()}"
    blocked = next((found for path in paths if (found := blocking_path(path))), paths[0])
    asked, place = _shown(paths[0], hidden), _shown(blocked, hidden)
    if place != str(blocked):
        owner = describe_permissions(blocked).removeprefix(f"{blocked} ")
        return f"{asked}: permission denied for {whoami()}; something below it {owner}. Mend: as this user, find {place} ! -readable"
    return f"{asked}: permission denied for {whoami()}; {describe_permissions(blocked)}. Mend: {_permission_fix(blocked)}"


def blocking_path(path: Path) -> Path | None:
    """What keeps this process from a path: the first folder above that it may not enter, the path itself, or the folder it is in."""
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
    """Owner, group and mode of a path in words."""
    try:
        status = path.lstat()
    except OSError:
        return f"{path} cannot be looked at"
    return f"{path} belongs to {_user(status.st_uid)}:{_group(status.st_gid)} with mode {stat.filemode(status.st_mode)}"


def whoami() -> str:
    """This process's user and groups in words."""
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
