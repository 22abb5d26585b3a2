"""Small file helpers that both wings trust: atomic writes, atomic links, hashes, kernel locks."""

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

PRIVATE = 0o600  # mode of a file for its owner's eyes only
SCHEMA = 1  # form of the JSON files that outlive an upgrade
_CHUNK = 1 << 20


def sync_file(path: Path) -> None:
    """Make what another writer put into a file survive a power cut, before a rename gives it its name."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Make a rename in this directory survive a power cut."""
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
    """Mode of a new file in a folder, before the umask: nobody may read or write it who may not do so with the folder.

    Whoever writes into a job's folder (runner, step, triggerer, API server) has a umask of its own; the folder's mode is the same for all.
    """
    return 0o666 & os.stat(folder).st_mode


def open_new(path: Path, flags: int, *, mode: int | None = None) -> int:
    """Open a file that may be new, close-on-exec. Returns its descriptor.

    Args:
        path: The file.
        flags: As for :func:`os.open`, without those that make the file.
        mode: Mode of a new file, less the umask; :func:`open_to` its folder when empty.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, open_to(path.parent) if mode is None else mode)
    try:
        belongs_to_the_folders_owner(fd, path.parent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def belongs_to_the_folders_owner(fd: int, folder: Path) -> None:
    """Give what root has made to the folder's owner: the user of a job's container must read what Airflow writes into the job's folder."""
    if os.geteuid():
        return
    owner = os.stat(folder)
    if owner.st_uid and not os.fstat(fd).st_uid:
        with contextlib.suppress(PermissionError):  # a share that squashes root has made it somebody else's already
            os.fchown(fd, owner.st_uid, owner.st_gid)


def make_parents(path: Path) -> None:
    """Make the missing folders above a path. Nobody may enter one who may not enter the folder that it is made in."""
    missing: list[Path] = []
    folder = path.parent
    while not os.path.exists(folder):
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            new.mkdir(mode=0o777 & os.stat(new.parent).st_mode)


def read_only(path: Path) -> None:
    """Take the right to write from everybody; who may read it stays."""
    path.chmod(path.stat().st_mode & 0o444)


def temporary_beside(path: Path) -> Path:
    """A fresh hidden name in the same directory, so that a rename onto ``path`` is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def replacing(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends: a reader sees the old one or the whole new one, also after a crash.

    Args:
        mode: Mode of the new file, less the umask, from its first byte on; :func:`open_to` its folder when empty. When
            the block raises, ``path`` stays as it is.
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
    """:func:`write_atomic` of what only its owner may read."""
    write_atomic(path, data, mode=PRIVATE)


def write_json(path: Path, data: Any) -> None:
    """:func:`write_atomic` of readable JSON. NaN is refused: other languages cannot read it."""
    write_atomic(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def write_record(path: Path, data: Mapping[str, Any]) -> None:
    """:func:`write_json` of an object that later versions read too: it says by ``schema`` of which form it is.

    Readers take the keys that they know, and a file without ``schema``, which version 0.1 wrote, as one of the first form.
    """
    write_json(path, {"schema": SCHEMA, **data})


def append_lines(path: Path, lines: bytes, *, mode: int | None = None) -> None:
    """Append whole lines to a file that only grows, and have them on the disk. Hold a lock: on network file systems appends would meet.

    Args:
        lines: Lines with a line end after each.
        mode: Mode of a new file, less the umask; :func:`open_to` its folder when empty.

    Raises:
        OSError: There is no room for all of them. A line that was cut off is closed by the next append; readers skip
            it.
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
    """A JSON object that may be missing or damaged, for readers to whom that means nothing is known; empty then."""
    try:
        data = read_json(path)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def content_hash(data: Any, *, length: int = 16) -> str:
    """Short hex name of a JSON value, independent of key order (sha256, ``length`` hex digits)."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def repoint(link: Path, target: Path) -> None:
    """Make ``link`` a relative symbolic link to ``target`` by an atomic rename: readers see the old or the new one.

    Raises:
        FileExistsError: ``link`` exists and is not a symbolic link (never deleted, it may be somebody's data).
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
    """Hold a kernel lock (``flock``) on ``path`` and yield its file descriptor. Death releases it, so no lock is ever stale.

    Args:
        path: Lock file; made when missing, never removed (removing one that others wait on would split the lock).
        poll: Called about every ``interval`` seconds while waiting; it may raise to give up.
        inheritable: Children started meanwhile keep the lock alive until the last of them ends.
        parents: Make missing folders above it; False where a missing folder means that the storage is away.
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
