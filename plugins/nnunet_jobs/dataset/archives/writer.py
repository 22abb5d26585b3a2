"""Writes an archive's files, none larger than it claims, and watches the disk, the stop flag and damaged data meanwhile."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import DiskFull, JobError
from nnunet_jobs.contract.storage.files import read_only
from nnunet_jobs.dataset.archives.entries import Entries
from nnunet_jobs.dicom.mark import like_dicom
from nnunet_jobs.faults.codes import Code

_RESERVE = 1 << 30  # bytes that stay free on the disk; a twentieth of the disk if that is less
LOOK_AT_DISK = 64 << 20  # bytes written between two checks of the disk
_REPORT_S = 0.5


class DamagedArchive(Exception):
    """The archive's data is damaged; this becomes a fault with the code and entry."""

    def __init__(self, message: str, *, entry: str | None = None, code: Code = Code.ARCHIVE_DAMAGED) -> None:
        super().__init__(message)
        self.entry, self.code = entry, code


class Writer:
    """Writes the files of an archive, and watches the stop flag and the disk."""

    def __init__(self, folder: Path, context: StepContext, entries: Entries) -> None:
        self.folder, self.context, self.entries = folder, context, entries
        self.written, self._looked_at, self._reported = 0, 0, 0.0

    def beat(self) -> None:
        """Report that the step is alive; raise when the job is to stop."""
        self.context.check_stop()
        self.context.beat()

    def need(self, size: int) -> None:
        """Raise DiskFull unless ``size`` bytes more fit, with a reserve for other jobs."""
        usage = shutil.disk_usage(self.folder)
        reserve = min(_RESERVE, usage.total // 20)
        if usage.free < size + reserve:
            raise DiskFull(
                f"{self.folder.parent} has {usage.free >> 20} MiB free; unpacking needs {size >> 20} MiB "
                f"and leaves {reserve >> 20} MiB; make room and run again"
            )

    def write(self, name: str, size: int, pieces: Iterator[bytes]) -> None:
        """Write one admitted file of exactly ``size`` bytes.

        Raises:
            DamagedArchive: There are more or fewer.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with open(path, "xb") as file:
            for piece in pieces:
                self.entries.dicom |= not written and like_dicom(piece)
                written += len(piece)
                if written > size:
                    break
                file.write(piece)
                self._count(len(piece))
        if written != size:
            raise DamagedArchive(
                f"holds {'more' if written > size else 'fewer'} bytes than its header says; copy the archive again", entry=name
            )
        read_only(path)

    def _count(self, size: int) -> None:
        self.written += size
        if self.written - self._looked_at >= LOOK_AT_DISK:
            self._looked_at = self.written
            self.need(0)
        self.beat()
        if time.monotonic() - self._reported > _REPORT_S:
            self._reported = time.monotonic()
            self.context.progress("unpack", self.written >> 20, unit="MiB")


def guarded(pieces: Callable[[], bytes], entry: str | None) -> Iterator[bytes]:
    """Yield pieces until an empty one. Damaged data makes the libraries raise almost any error; each means a damaged archive."""
    while True:
        with as_damage(entry):
            piece = pieces()
        if not piece:
            return
        yield piece


class as_damage:  # noqa: N801  a context manager used as a statement
    """Turns what a library raises for damaged data into :class:`DamagedArchive`."""

    def __init__(self, entry: str | None = None) -> None:
        self.entry = entry

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EOFError):
            raise DamagedArchive("ends early; copy the archive again", entry=self.entry) from error
        if isinstance(error, Exception) and not isinstance(error, DamagedArchive | JobError | MemoryError):
            raise DamagedArchive(f"cannot be read ({error}); copy the archive again", entry=self.entry) from error
