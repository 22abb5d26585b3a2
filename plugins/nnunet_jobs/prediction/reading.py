"""Reading foreign images so that one that kills its reader costs a case, not the job.

Two guards, since an image is read twice. The check of every byte, where damaged files do their harm, is made in a warm process beside the
job: it was made anyway, so that costs nothing but the process's start, which passes while the model is loaded. nnU-Net's own reader stays
in the job, because its arrays would have to be carried over and every custom reader's properties with them. While it reads and
preprocesses, a marker file names the case. A marker that is still there when the next attempt begins makes its case a suspect: it comes
by itself, after all others; the process beside tries nnU-Net's reader on it first, and one that has ended two attempts all the same is
not tried any more. A predictor server has no next attempt, so there the process beside tries nnU-Net's reader on every image.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from nnunet_jobs.contract.failure import Bug, DataError, Fault
from nnunet_jobs.devices import host
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.prediction.cases import Case, check_images
from nnunet_jobs.sandbox.workers import MEMORY_SHARE, Broken, Died, NotStarted, Workers, size_of, time_limit_s

log = logging.getLogger("nnunet_jobs")

_MOST_DEATHS = 2

Beat = Callable[[], None]
Odd = tuple[Fault, ...]
"""What is odd about a case's images and does not forbid it: registration's warnings."""


class ImageReading(Protocol):
    """How a predictor's images are checked, and what surrounds nnU-Net's own reading of them."""

    def check(self, case: Case, *, file_ending: str, channels: int, reader: str, beat: Beat) -> Odd:
        """What is odd about a case. Raises DataError with its faults. ``reader``: name of nnU-Net's reader class."""

    def reading(self, case: Case) -> contextlib.AbstractContextManager[None]:
        """Surround reading and preprocessing."""


class ReadHere:
    """In the calling thread."""

    def check(self, case: Case, *, file_ending: str, channels: int, reader: str, beat: Beat) -> Odd:
        """See :class:`ImageReading`."""
        return check_images(case, file_ending=file_ending, channels=channels, reader=reader, beat=beat)

    def reading(self, case: Case) -> contextlib.AbstractContextManager[None]:
        """See :class:`ImageReading`."""
        return contextlib.nullcontext()


class _Beside:
    """One process of :mod:`nnunet_jobs.prediction.reader`, replaced when it dies; a context manager.

    Args:
        memory_mib: Memory in MiB of the host or the job, of which it may take the most.
        image_bytes: See :func:`nnunet_jobs.prediction.reader.check`.
    """

    def __init__(self, *, memory_mib: int, image_bytes: int | None = None) -> None:
        self._memory_mib, self._image_bytes = int(memory_mib * MEMORY_SHARE), image_bytes
        self._workers = Workers(1, program="nnunet_jobs.prediction.reader")

    def __enter__(self) -> Self:
        self._workers.__enter__()
        self._workers.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._workers.__exit__(kind, error, trace)

    def _check(self, case: Case, *, file_ending: str, channels: int, reader: str, try_reader: bool, beat: Beat) -> tuple[int | None, Odd]:
        """Bytes of an image that needs more memory than it may, else None, and what is odd; DataError with the faults of a case."""
        request = {
            "case": case.case,
            "images": [str(path) for path in case.images],
            "file_ending": file_ending,
            "channels": channels,
            "reader": reader,
            "try_reader": try_reader,
            "image_bytes": self._image_bytes,
        }
        limit = time_limit_s(size_of(case.images))
        try:
            try:
                answer = self._call(request, limit, beat)
            except NotStarted:
                raise
            except Died as died:  # a process may be killed for what another did, by a kernel short of memory say; a bad file kills two
                log.warning("case %s is read once more: %s", case.case, died)
                answer = self._call(request, limit, beat)
        except NotStarted as broken:
            raise Bug(f"the process that reads images cannot be started: {broken}; see whether Python starts on this host") from broken
        except Broken as broken:
            raise _crashed(case, f"{broken}; write its files anew, or allow it more memory if they are large") from broken
        if answer["problem"]:
            raise DataError(answer["problem"], faults=[Fault(**fault) for fault in answer["faults"]])
        return answer["needs"], tuple(Fault(**fault) for fault in answer["faults"])

    def _call(self, request: dict[str, Any], timeout_s: float, beat: Beat) -> dict[str, Any]:
        return self._workers.call("check", request, timeout_s=timeout_s, memory_mib=self._memory_mib, beat=beat)


class ReadUploads(_Beside):
    """In a process of its own, which tries nnU-Net's reader too: for a server, which must outlive every image. A context manager.

    Args:
        image_mib: What one image may need in memory.
        setting: Its name, for who is refused.
    """

    def __init__(self, *, image_mib: int, setting: str) -> None:
        super().__init__(memory_mib=host.memory_mib(), image_bytes=image_mib << 20)
        self._image_mib, self._setting = image_mib, setting

    def check(self, case: Case, *, file_ending: str, channels: int, reader: str, beat: Beat) -> Odd:
        """See :class:`ImageReading`; MemoryError for an image that needs more memory than it may."""
        needs, odd = self._check(case, file_ending=file_ending, channels=channels, reader=reader, try_reader=True, beat=beat)
        if needs is not None:
            raise MemoryError(f"it needs {needs >> 20} MiB, {self._image_mib} are allowed ({self._setting})")
        return odd

    def reading(self, case: Case) -> contextlib.AbstractContextManager[None]:
        """See :class:`ImageReading`."""
        return contextlib.nullcontext()


class ReadBeside(_Beside):
    """In a process of its own, with markers; a context manager.

    Args:
        markers: Folder for them, of one part of one output folder: nobody else makes or removes it while the part's
            lock is held.
        memory_mib: Memory in MiB of the job; what the host allows when empty.
    """

    def __init__(self, markers: Path, *, memory_mib: int | None = None) -> None:
        super().__init__(memory_mib=memory_mib or host.memory_mib())
        self._markers = markers
        markers.mkdir(parents=True, exist_ok=True)
        self._deaths = {path.name: _count(path) for path in markers.iterdir()}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        with contextlib.suppress(OSError):
            self._markers.rmdir()  # holds the marker of a case that ends this attempt otherwise

    def in_turns(self, cases: Sequence[Case]) -> list[list[Case]]:
        """The cases in their order; each that was being read when an attempt ended comes by itself, when all others are written."""
        others = [case for case in cases if case.case not in self._deaths]
        return [turn for turn in (others, *([case] for case in cases if case.case in self._deaths)) if turn]

    def check(self, case: Case, *, file_ending: str, channels: int, reader: str, beat: Beat) -> Odd:
        """See :class:`ImageReading`."""
        deaths = self._deaths.get(case.case, 0)
        try:
            if deaths >= _MOST_DEATHS:
                message = f"{deaths} attempts ended while it was read and preprocessed; look at their logs, else write the files anew"
                raise _crashed(case, message)
            return self._check(case, file_ending=file_ending, channels=channels, reader=reader, try_reader=deaths > 0, beat=beat)[1]
        except DataError:
            self._forget(case)  # it has its reason now; files that were fixed deserve a fresh try
            raise

    @contextlib.contextmanager
    def reading(self, case: Case) -> Iterator[None]:
        """See :class:`ImageReading`. Whatever Python lives to tell removes the marker."""
        marker = self._markers / case.case
        marker.write_text(str(self._deaths.get(case.case, 0) + 1))
        try:
            yield
        finally:
            self._forget(case)

    def _forget(self, case: Case) -> None:
        (self._markers / case.case).unlink(missing_ok=True)
        self._deaths.pop(case.case, None)


def _crashed(case: Case, message: str) -> DataError:
    fault = Fault(code=Code.READER_CRASHED, case=case.case, message=message)
    return DataError(f"{fault.code}: {message}", faults=[fault])


def _count(marker: Path) -> int:
    try:
        return max(1, int(marker.read_text()))
    except (OSError, ValueError):  # killed between making the file and writing to it
        return 1
