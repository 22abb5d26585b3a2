"""Brings files into nnUNet_raw: by reflink, hard link or copy, or split into channels; verified, and swapped in by one rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gzip
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nnunet_jobs.contract.storage.files import open_regular, sync_directory, sync_file, temporary_beside
from nnunet_jobs.dataset.readers.volume import hash_file

_FICLONE = 0x40049409  # linux/fs.h
_CHUNK = 1 << 20
_LEVEL = 3  # of gzip, where this module compresses: a third of the default's time for files 4 % larger
NOT_HERE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EMLINK, errno.EACCES}


class SourceChanged(Exception):
    """A source file changed after it was validated."""


def place(source: Path, target: Path, *, sha256: str, method: str, beat: Callable[[], None]) -> str:
    """Bring a file's bytes to ``target`` by a temporary name and a rename, and verify them. Returns the method that was used.

    ``auto`` uses a reflink where the file system has it; else a hard link when nobody has write permission on the source file
    (through a hard link, editing the source in place would silently edit the registered case); else a copy.

    Args:
        source: File to copy or link.
        target: File to make.
        sha256: SHA-256 of the source when it was validated.
        method: ``auto``, ``reflink``, ``hardlink`` or ``copy``.
        beat: Called for each MiB; it may raise to stop.

    Raises:
        SourceChanged: The bytes differ from those that were validated.
        OSError: The method does not work between the two places, no space left, and so on.
    """
    temporary = temporary_beside(target)
    try:
        used, digest = _bring(source, temporary, method, beat)
        if (digest or hash_file(temporary, beat)) != sha256:
            raise SourceChanged(str(source))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return used


def _bring(source: Path, temporary: Path, method: str, beat: Callable[[], None]) -> tuple[str, str | None]:
    """Link or copy; return the sha256 only for copies."""
    if method in ("auto", "reflink"):
        try:
            with open_regular(source) as reader, open(temporary, "xb") as writer:
                fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
                os.fsync(writer.fileno())
            return "reflink", None
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if method == "reflink" or error.errno not in NOT_HERE:
                raise
    if method == "hardlink" or (method == "auto" and not source.stat().st_mode & 0o222):
        try:
            os.link(os.path.realpath(source), temporary)
            return "hardlink", None
        except OSError as error:
            if method == "hardlink" or error.errno not in NOT_HERE:
                raise
    digest = hashlib.sha256()
    with open_regular(source) as reader, open(temporary, "xb") as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
            beat()
        writer.flush()
        os.fsync(writer.fileno())
    return "copy", digest.hexdigest()


def recode(source: Path, target: Path, *, sha256: str, component: int | None, beat: Callable[[], None]) -> str:
    """Write a source file with the ending of ``target``, or one channel of a 4D file as a 3D file. Returns the new file's sha256.

    Voxels, data type, scaling, spacing and affine stay as they are, bit for bit; the same source gives the same bytes.

    Args:
        source: NIfTI file to read.
        target: NIfTI file to write.
        sha256: SHA-256 of the source when it was validated.
        component: Index on the last axis, None for all of a 3D file.
        beat: Called as a heartbeat.

    Raises:
        SourceChanged: The bytes are not what was validated.
    """
    with open_regular(source) as reader:
        data = reader.readall()
    beat()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SourceChanged(str(source))
    if source.name.endswith(".gz"):
        data = _inflate(data)
    if component is not None:
        data = _component(data, component)
    if target.name.endswith(".gz"):
        data = gzip.compress(data, _LEVEL, mtime=0)
    temporary = temporary_beside(target)
    try:
        with open(temporary, "xb") as writer:
            writer.write(data)
            writer.flush()
            os.fsync(writer.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


def _inflate(data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (zlib.error, EOFError, OSError) as error:  # it was whole when it was validated, and its hash is the same
        raise SourceChanged(str(error)) from error


def _component(data: bytes, component: int) -> bytes:
    """Return one volume of a 4D NIfTI file as a 3D NIfTI file. Header extensions are dropped."""
    import nibabel

    kind = nibabel.Nifti1Header if 348 in (int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")) else nibabel.Nifti2Header
    header = kind(data[: kind.template_dtype.itemsize], check=False)
    shape = tuple(int(n) for n in header.get_data_shape())
    count = int(np.prod(shape[:3]))
    dtype = header.get_data_dtype()
    start = int(header["vox_offset"]) + component * count * dtype.itemsize
    zooms = header.get_zooms()[:3]
    header.set_data_shape(shape[:3])
    header.set_zooms(zooms)
    header["vox_offset"] = len(header.binaryblock) + 4
    return bytes(header.binaryblock) + b"\0\0\0\0" + data[start : start + count * dtype.itemsize]


def link_or_copy(source: Path, target: Path) -> None:
    """Bring a file from one folder of a dataset to another, by link if the file system allows it."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
        shutil.copyfile(source, target)  # without the mode: a copy is ours, and follows the umask
        sync_file(target)


def recover(folder: Path) -> None:
    """Undo an exchange that was killed on a file system without atomic exchange: bring the old folder back."""
    aside = _aside(folder)
    if aside.exists():
        if folder.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, folder)


def swap_in(staging: Path, folder: Path) -> None:
    """Replace ``folder`` with a complete ``staging`` folder by one rename; the old folder is removed afterwards.

    The names of its files are synced first, so that a power cut after the rename loses nothing.

    Linux exchanges two folders atomically. Where the file system cannot (NFS), the old folder is moved aside first; if the process is
    killed then, :func:`recover` fixes it.
    """
    for parent, _, _ in os.walk(staging):
        sync_directory(Path(parent))
    if not folder.exists():
        os.rename(staging, folder)
    elif _exchange(staging, folder):
        sync_directory(folder.parent)
        shutil.rmtree(staging)
    else:
        os.rename(folder, _aside(folder))
        os.rename(staging, folder)
        shutil.rmtree(_aside(folder))
    sync_directory(folder.parent)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Call renameat2(RENAME_EXCHANGE); return False if kernel, C library or file system do not support it."""
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        at_fdcwd, exchange = -100, 2
        if libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), exchange) == 0:
            return True
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(number, os.strerror(number), str(one), None, str(other))
    return False
