"""Reads foreign images so that one that crashes its reader fails its case, not the job.

There are two protections, since an image is read twice. A separate process checks every byte first, where damaged files do most harm;
it costs only its start, which passes while the model is loaded. nnU-Net's own reader stays in the job, because its arrays and every
custom reader's properties would otherwise have to be transferred. While it reads and preprocesses, a marker file names the case. If
the marker still exists when the next attempt begins, the case is a suspect: it runs alone, after all others, and the separate process
tries nnU-Net's reader on it first. A case that has ended two attempts nevertheless is not tried again. A predictor server has no next
attempt, so there the separate process tries nnU-Net's reader on every image.
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
"""Warnings about a case's images, the same as registration's, which do not forbid the case."""


class ImageReading(Protocol):
    """Checks a predictor's images, and surrounds nnU-Net's own reading of them."""

    def check(self, case: Case, *, file_ending: str, channels: int, reader: str, beat: Beat) -> Odd:
        """Return a case's warnings; raise DataError with its faults. ``reader``: name of nnU-Net's reader class."""

    def reading(self, case: Case) -> contextlib.AbstractContextManager[None]:
        """Surround reading and preprocessing."""


class ReadHere:
    """Checks images in the calling thread."""

    def check(self, case: Case, *, file_ending: str, channels: int, reader: str, beat: Beat) -> Odd:
        """See :class:`ImageReading`."""
        return check_images(case, file_ending=file_ending, channels=channels, reader=reader, beat=beat)

    def reading(self, case: Case) -> contextlib.AbstractContextManager[None]:
        """See :class:`ImageReading`."""
        return contextlib.nullcontext()


class _Beside:
    """Runs one process of :mod:`nnunet_jobs.prediction.reader`, and replaces it when it crashes; a context manager.

    Args:
        memory_mib: Memory in MiB of the host or the job; the process may use most of it.
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
        """Return the bytes of an image that needs more memory than allowed, else None, and warnings; raise DataError for faults."""
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
            except Died as died:  # another process may be the cause, such as one that exhausts memory; a bad file kills two
                log.warning("case %s is read again: %s", case.case, died)
                answer = self._call(request, limit, beat)
        except NotStarted as broken:
            raise Bug(f"the process that reads images cannot be started: {broken}; check whether Python starts on this host") from broken
        except Broken as broken:
            raise _crashed(case, f"{broken}; write its files again, or allow it more memory if they are large") from broken
        if answer["problem"]:
            raise DataError(answer["problem"], faults=[Fault(**fault) for fault in answer["faults"]])
        return answer["needs"], tuple(Fault(**fault) for fault in answer["faults"])

    def _call(self, request: dict[str, Any], timeout_s: float, beat: Beat) -> dict[str, Any]:
        return self._workers.call("check", request, timeout_s=timeout_s, memory_mib=self._memory_mib, beat=beat)


class ReadUploads(_Beside):
    """Checks images for a server, which must survive every image, in a separate process that also tries nnU-Net's reader.

    Args:
        image_mib: Memory in MiB that one image may need.
        setting: Name of that setting, for the message.
    """

    def __init__(self, *, image_mib: int, setting: str) -> None:
        super().__init__(memory_mib=host.memory_mib(), image_bytes=image_mib << 20)
        self._image_mib, self._setting = image_mib, setting

    def check(self, case: Case, *, file_ending: str, channels: int, reader: str, beat: Beat) -> Odd:
        """See :class:`ImageReading`; raises MemoryError for an image that needs more memory than allowed."""
        needs, odd = self._check(case, file_ending=file_ending, channels=channels, reader=reader, try_reader=True, beat=beat)
        if needs is not None:
            raise MemoryError(f"it needs {needs >> 20} MiB, {self._image_mib} are allowed ({self._setting})")
        return odd

    def reading(self, case: Case) -> contextlib.AbstractContextManager[None]:
        """See :class:`ImageReading`."""
        return contextlib.nullcontext()


class ReadBeside(_Beside):
    """Checks images for a job in a separate process, with markers; a context manager.

    Args:
        markers: Folder for the markers of one part of one output folder; only the holder of the part's lock makes or
            removes it.
        memory_mib: Memory in MiB of the job; what the host allows if None.
    """

    def __init__(self, markers: Path, *, memory_mib: int | None = None) -> None:
        super().__init__(memory_mib=memory_mib or host.memory_mib())
        self._markers = markers
        markers.mkdir(parents=True, exist_ok=True)
        self._deaths = {path.name: _count(path) for path in markers.iterdir()}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        with contextlib.suppress(OSError):
            self._markers.rmdir()  # fails if it holds the marker of a case that ends this attempt

    def in_turns(self, cases: Sequence[Case]) -> list[list[Case]]:
        """Return groups of cases in order; a case that was being read when an attempt ended is alone, after all others."""
        others = [case for case in cases if case.case not in self._deaths]
        return [turn for turn in (others, *([case] for case in cases if case.case in self._deaths)) if turn]

    def check(self, case: Case, *, file_ending: str, channels: int, reader: str, beat: Beat) -> Odd:
        """See :class:`ImageReading`."""
        deaths = self._deaths.get(case.case, 0)
        try:
            if deaths >= _MOST_DEATHS:
                message = f"{deaths} attempts ended while it was read and preprocessed; look at their logs, else write the files again"
                raise _crashed(case, message)
            return self._check(case, file_ending=file_ending, channels=channels, reader=reader, try_reader=deaths > 0, beat=beat)[1]
        except DataError:
            self._forget(case)  # its reason is recorded; files that were fixed are tried again
            raise

    @contextlib.contextmanager
    def reading(self, case: Case) -> Iterator[None]:
        """See :class:`ImageReading`. The marker is removed unless the process itself ends."""
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
