"""File helpers of both packages: atomic writes, atomic links, hashes, kernel locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

PRIVATE = 0o600  # mode of a file that only its owner may read
SCHEMA = 1  # version of the JSON files that later versions also read
_CHUNK = 1 << 20


def sync_file(path: Path) -> None:
    """Sync a file that another writer wrote, so that it survives a power cut after it is renamed."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Sync a directory, so that a rename in it survives a power cut."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: Path) -> io.FileIO:
    """Open for reading, but refuse pipes, devices and folders at once instead of waiting on them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "not a regular file")
    return io.FileIO(fd, "rb")


def open_to(folder: Path) -> int:
    """Return the mode of a new file in a folder, before the umask: only users who may read or write the folder may do so.

    All writers of a job's folder (runner, step, triggerer, API server) have different umasks; the folder's mode is the same for all.
    """
    return 0o666 & os.stat(folder).st_mode


def open_new(path: Path, flags: int, *, mode: int | None = None) -> int:
    """Open a file that may be new, close-on-exec. Returns its descriptor.

    Args:
        path: The file.
        flags: Flags of :func:`os.open`, without those that make the file.
        mode: Mode of a new file, less the umask; :func:`open_to` its folder if None.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, open_to(path.parent) if mode is None else mode)
    try:
        belongs_to_the_folders_owner(fd, path.parent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def belongs_to_the_folders_owner(fd: int, folder: Path) -> None:
    """Give a file that root made to the folder's owner, since the user of a job's container must read what Airflow writes there."""
    if os.geteuid():
        return
    owner = os.stat(folder)
    if owner.st_uid and not os.fstat(fd).st_uid:
        with contextlib.suppress(PermissionError):  # a share that squashes root has changed the owner already
            os.fchown(fd, owner.st_uid, owner.st_gid)


def make_parents(path: Path) -> None:
    """Make the missing folders above a path. Only users who may enter the parent folder may enter a new one."""
    missing: list[Path] = []
    folder = path.parent
    while not os.path.exists(folder):
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            new.mkdir(mode=0o777 & os.stat(new.parent).st_mode)


def read_only(path: Path) -> None:
    """Remove all write permissions; read permissions stay."""
    path.chmod(path.stat().st_mode & 0o444)


def temporary_beside(path: Path) -> Path:
    """Return a new hidden name in the same directory, so that a rename onto ``path`` is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def replacing(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends; readers see the old or the whole new file, even after a crash.

    If the block raises, ``path`` is unchanged.

    Args:
        mode: Mode of the new file, less the umask, from its first byte on; :func:`open_to` its folder if None.
    """
    temporary = temporary_beside(path)
    fd = open_new(temporary, os.O_WRONLY | os.O_EXCL, mode=mode)
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_atomic(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write ``data`` by :func:`replacing`."""
    with replacing(path, mode=mode) as file:
        file.write(data)


def write_private(path: Path, data: bytes) -> None:
    """Write by :func:`write_atomic` a file that only its owner may read."""
    write_atomic(path, data, mode=PRIVATE)


def write_json(path: Path, data: Any) -> None:
    """Write readable JSON by :func:`write_atomic`. NaN is refused, since other languages cannot read it."""
    write_atomic(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def write_record(path: Path, data: Mapping[str, Any]) -> None:
    """Write by :func:`write_json` an object that later versions also read; ``schema`` is the version of its form.

    Readers use the keys that they know; a file without ``schema``, from version 0.1, has the first form.
    """
    write_json(path, {"schema": SCHEMA, **data})


def append_lines(path: Path, lines: bytes, *, mode: int | None = None) -> None:
    """Append whole lines to a file that only grows, and sync it. Hold a lock, since on network file systems appends would mix.

    Args:
        lines: Lines with a line end after each.
        mode: Mode of a new file, less the umask; :func:`open_to` its folder if None.

    Raises:
        OSError: There is no room for all of them. The next append ends a line that was cut off; readers skip it.
    """
    fd = open_new(path, os.O_RDWR | os.O_APPEND, mode=mode)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"  # a writer was killed, or the disk was full
        data = b"\n" + lines if torn else lines
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(fd)
    finally:
        os.close(fd)


def read_json(path: Path) -> Any:
    """Read a JSON file written by :func:`write_json`."""
    return json.loads(path.read_bytes())


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if it is missing or damaged."""
    try:
        data = read_json(path)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def content_hash(data: Any, *, length: int = 16) -> str:
    """Return a short hex name of a JSON value, independent of key order (sha256, ``length`` hex digits)."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def repoint(link: Path, target: Path) -> None:
    """Make ``link`` a relative symbolic link to ``target`` by an atomic rename: readers see the old or the new one.

    Raises:
        FileExistsError: ``link`` exists and is not a symbolic link; it may be a user's data and is never deleted.
    """
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is not a link; move it away so that it can point to {target}")
    make_parents(link)
    temporary = temporary_beside(link)
    os.symlink(os.path.relpath(target, link.parent), temporary)
    os.replace(temporary, link)
    sync_directory(link.parent)


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    poll: Callable[[], None] | None = None,
    interval: float = 0.2,
    inheritable: bool = False,
    parents: bool = True,
) -> Iterator[int]:
    """Hold a kernel lock (``flock``) on ``path`` and yield its file descriptor. The kernel releases it when the process ends.

    Args:
        path: Lock file; made when missing, never removed (removing one that others wait on would split the lock).
        poll: Called about every ``interval`` seconds while waiting; it may raise to give up.
        inheritable: Children started meanwhile keep the lock alive until the last of them ends.
        parents: Make missing folders above it; False if a missing folder means that the storage is not available.
    """
    if parents:
        make_parents(path)
    fd = open_new(path, os.O_RDWR)
    try:
        os.set_inheritable(fd, inheritable)
        while not try_lock(fd):
            if poll is not None:
                poll()
            time.sleep(interval)
        yield fd
    finally:
        os.close(fd)


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock on an open file now. Returns False if another process has it."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
