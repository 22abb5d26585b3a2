"""Unpacks datasets that come as one archive (.zip, .tar, .tar.gz) into a scratch folder, and trusts nothing that the archive says."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Protocol

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import DiskFull, Fault
from nnunet_jobs.contract.storage.files import open_regular
from nnunet_jobs.dataset.archives.entries import Entries, Limits, kind_of_mode
from nnunet_jobs.dataset.archives.writer import LOOK_AT_DISK, DamagedArchive, Writer, as_damage, guarded
from nnunet_jobs.dataset.manifest import signature_of
from nnunet_jobs.dicom.mark import HEAD, like_dicom
from nnunet_jobs.faults.codes import Code, data_error

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
_CHUNK = 1 << 20
_BLOCK = 512  # bytes of a tar block
_LOOKED_AT = 1000  # entries of a faulty zip that are searched for DICOM
_MAX_HEADER = 1 << 20  # bytes of one tar header with its extensions; tarfile reads them whole into memory


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


def named_as_one(path: Path) -> bool:
    """Whether a file's name says that it is an archive of a supported kind."""
    return path.name.lower().endswith(ENDINGS)


def unpack(archive: Path, folder: Path, *, context: StepContext, limits: Limits | None = None) -> Path:
    """Unpack an archive into a new folder; return the single folder at its top, if there is one.

    Name, kind and size of every entry are checked before it is written; sizes are counted again while unpacking. Links are made
    last, between files that the archive holds. Files become read-only, so that registering takes them by hard link.

    Args:
        archive: A regular file.
        folder: Made here; the caller removes it in any case.
        context: Context of the step, to report progress and to be stopped.
        limits: How much the archive may hold.

    Returns:
        The folder of the dataset, below ``folder``.

    Raises:
        DataError: The archive is unsafe, damaged, encrypted or too large; lists all faults, each with its entry.
        DiskFull: There is no room to unpack it.
        Interrupted: The job is to stop.
    """
    before = signature_of(archive)
    entries = Entries(limits=limits or Limits(), packed=before[2])
    folder.mkdir(mode=0o700)
    writer = Writer(folder, context, entries)
    try:
        with open_regular(archive) as raw, io.BufferedReader(raw, _CHUNK) as file:
            magic = file.peek(4)[:4]
            if magic[:2] == b"PK":
                _unzip(file, entries, writer)
            elif magic[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=file) as inflated:
                    forward = _untar(inflated, entries, writer)
                    for _ in () if entries.full else guarded(lambda: forward.read(_MAX_HEADER), None):  # to the checksum at the end
                        writer.beat()
            else:
                writer.need(entries.packed)
                _untar(file, entries, writer)
        _link(folder, entries)
    except DamagedArchive as damaged:
        entries.faults.append(Fault(code=damaged.code, file=damaged.entry, message=str(damaged)))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no room to unpack {archive.name} in {folder.parent}; make room and run again") from error
        raise
    if signature_of(archive) != before:
        message = "changed while it was being unpacked; run again when the source no longer changes"
        entries.faults = [Fault(code=Code.SOURCE_CHANGED, file=archive.name, message=message)]
    if not entries.faults and entries.files and all(named_as_one(Path(name)) for name in entries.files):
        message = "holds only further archives, which are not opened; unpack it and name one of them"
        entries.faults.append(Fault(code=Code.ARCHIVE_NESTED, file=next(iter(entries.files)), message=message))
    if entries.faults:
        raise data_error(entries.reported(), what=archive.name)
    return _top(folder)


def _top(folder: Path) -> Path:
    """Return the dataset's folder: most archives hold one folder with everything in it. A lone BIDS subject is content, not that folder."""
    while True:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].is_symlink() or inside[0].name.startswith("sub-"):
            return folder
        folder = inside[0]


# --- zip ------------------------------------------------------------------------------------------------------------
def _unzip(file: IO[bytes], entries: Entries, writer: Writer) -> None:
    with as_damage():
        opened = zipfile.ZipFile(file)
    with opened as archive:
        jobs = []
        for info in archive.infolist():
            name, mode = info.orig_filename, info.external_attr >> 16
            if info.flag_bits & 0x41:
                entries.fault(name, "is encrypted; pack the dataset without a password", Code.ARCHIVE_ENCRYPTED)
            elif kind_of_mode(mode):
                entries.special(name, kind_of_mode(mode) or "")
            elif name.endswith("/"):
                entries.folder(name)
            elif stat.S_ISLNK(mode):
                if info.file_size > _MAX_HEADER:
                    entries.fault(name, "is a link with an endless target")
                    continue
                with as_damage(name):
                    target = archive.read(info).decode("utf-8")
                entries.link(name, target, relative=True)
            elif path := entries.file(name, info.file_size):
                jobs.append((path, info))
            if entries.full:
                _look_for_dicom(archive, [info for _, info in jobs], entries)
                return
        if sum(info.compress_size for info in archive.infolist()) > entries.packed:
            entries.fault("", "has entries that overlap: one piece of data under many names; pack the dataset again")
        if entries.faults:
            _look_for_dicom(archive, [info for _, info in jobs], entries)
            return
        writer.need(entries.size)
        for path, info in jobs:
            with as_damage(path):
                reader = archive.open(info)
            with reader:
                writer.write(path, info.file_size, guarded(lambda reader=reader: reader.read(_CHUNK), path))  # type: ignore[misc]


def _look_for_dicom(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], entries: Entries) -> None:
    """Search a faulty archive for DICOM files, since its faults may name entries only where there are none."""
    for info in infos[:_LOOKED_AT]:
        with contextlib.suppress(DamagedArchive), as_damage(), archive.open(info) as reader:
            entries.dicom |= like_dicom(reader.read(HEAD))
        if entries.dicom:
            return


# --- tar ------------------------------------------------------------------------------------------------------------
class _Forward:
    """A stream that tarfile may read and seek forward in. All bytes are counted, also those that are skipped."""

    def __init__(self, stream: _Readable, writer: Writer, limit: int) -> None:
        self._stream, self._writer, self._limit = stream, writer, limit
        self._at = 0
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise DamagedArchive("has a header of more than 1 MiB; pack the dataset again", code=Code.ARCHIVE_UNSAFE)
        pieces = []
        while size > 0 and (piece := self._stream.read(size)):
            pieces.append(piece)
            size -= len(piece)
        self.last = b"".join(pieces)
        self._at += len(self.last)
        if self._at > self._limit:
            message = f"unpacks to more than {self._limit} bytes; unpack it by hand if it is sound"
            raise DamagedArchive(message, code=Code.ARCHIVE_TOO_LARGE)
        return self.last

    def tell(self) -> int:
        return self._at

    def seek(self, position: int, whence: int = 0) -> int:
        if whence or position < self._at:
            raise DamagedArchive("has headers that point back; copy the archive again")
        while self._at < position:
            self._writer.beat()
            if not self.read(min(_MAX_HEADER, position - self._at)):
                raise EOFError
        return self._at

    def close(self) -> None:
        """Do nothing: the stream is closed where it was opened."""


def _untar(stream: _Readable, entries: Entries, writer: Writer) -> _Forward:
    # headers and padding are up to 1.5 KiB an entry, and more with long names
    limit = entries.limits.bytes_for(entries.packed) + entries.packed + (16 << 20)
    forward = _Forward(stream, writer, limit)
    with as_damage():
        archive = tarfile.TarFile(fileobj=forward)  # type: ignore[arg-type]  # it has all methods that tarfile calls
    last = None
    while True:
        with as_damage(last):
            member = archive.next()
        archive.members = []  # type: ignore[attr-defined]  # the list is not needed, and there may be a million entries
        if member is None:
            break
        last = member.name
        writer.beat()
        _take(archive, member, entries, writer)
        if entries.full:
            return forward
    if len(forward.last) < _BLOCK or forward.last.strip(b"\0"):
        # tarfile takes a damaged header, or the end of the file, for the end of the archive
        raise DamagedArchive("ends early or is damaged after this entry; copy the archive again", entry=last)
    return forward


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, entries: Entries, writer: Writer) -> None:
    name = member.name
    if member.size < 0:
        raise DamagedArchive("has a negative size; copy the archive again", entry=name)
    if member.isdir():
        entries.folder(name + "/")
    elif member.issym() or member.islnk():
        entries.link(name, member.linkname, relative=member.issym())
    elif not member.isreg():
        entries.special(name, "a pipe" if member.isfifo() else "a device" if member.isdev() else f"of the unknown kind {member.type!r}")
    elif (path := entries.file(name, member.size)) and entries.faults:
        with as_damage(path):
            peeked = archive.extractfile(member)
            entries.dicom |= peeked is not None and like_dicom(peeked.read(HEAD))
    elif path:
        if member.size > LOOK_AT_DISK:
            writer.need(member.size)
        with as_damage(path):
            tarfile.data_filter(member, str(writer.folder))  # a second check; it must find nothing more
            reader = archive.extractfile(member)
        if reader is not None:
            writer.write(path, member.size, guarded(lambda: reader.read(_CHUNK), path))


# --- links ----------------------------------------------------------------------------------------------------------
def _link(folder: Path, entries: Entries) -> None:
    """Make the links: those to files as hard links, so that none points outside; those to folders as relative symbolic links."""
    links = list(entries.resolved())
    if entries.faults:
        return
    for name, end in links:
        path, target = folder / name, folder / end
        path.parent.mkdir(parents=True, exist_ok=True)
        if end in entries.files:
            os.link(target, path)
        else:
            target.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.relpath(target, path.parent), target_is_directory=True)
