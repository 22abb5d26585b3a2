"""Reading foreign images so that one that kills its reader costs a case, not the job.

Two guards, since a case is read twice. The check of every byte, where damaged files do their harm, is made in a warm process beside the
job: it was made anyway, so that costs nothing but the process's start, which passes while the model is loaded. nnU-Net's own reader stays
in the job, because its arrays would have to be carried over and every custom reader's properties with them. While it reads and
preprocesses, a marker file names the case. A marker that is still there when the next attempt begins makes its case a suspect: it comes
by itself, after all others; the process beside tries nnU-Net's reader on it first, and one that has ended two attempts all the same is
not tried any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from nnunet_jobs import host
from nnunet_jobs.contract.failure import Bug, DataError, Fault
from nnunet_jobs.dataset.faults import Code
from nnunet_jobs.dicom.guard import Broken, Workers
from nnunet_jobs.prediction.cases import Case, check_images

_TIME_LIMIT_S = 60.0  # for a case without bytes, plus a second for each MiB: slower than any disk that a hospital would wait for
_MEMORY = 0.8  # share of what the host or its cgroup allows
_START_S = 120.0  # for Python and its imports, on a busy machine
_MOST_DEATHS = 2

Beat = Callable[[], None]


class Reading(Protocol):
    """How a predictor's images are checked, and what surrounds nnU-Net's own reading of them."""

    def check(self, case: Case, *, file_ending: str, channels: int, reader: str, beat: Beat) -> None:
        """Raise DataError with the faults of a case. ``reader``: name of nnU-Net's reader class."""

    def reading(self, case: Case) -> contextlib.AbstractContextManager[None]:
        """Surround reading and preprocessing."""


class ReadHere:
    """In the calling thread. ``reserve``: called with the bytes that an image needs before it is read; may raise MemoryError."""

    def __init__(self, reserve: Callable[[int], None] = lambda _size: None) -> None:
        self._reserve = reserve

    def check(self, case: Case, *, file_ending: str, channels: int, reader: str, beat: Beat) -> None:
        """See :class:`Reading`."""
        check_images(case, file_ending=file_ending, channels=channels, beat=beat, reserve=self._reserve)

    def reading(self, case: Case) -> contextlib.AbstractContextManager[None]:
        """See :class:`Reading`."""
        return contextlib.nullcontext()


class ReadBeside:
    """In a process of its own, with markers; a context manager.

    Args:
        markers: folder for them, of one output folder. memory_mib: of the job; what the host allows when empty.
    """

    def __init__(self, markers: Path, *, memory_mib: int | None = None) -> None:
        self._markers = markers
        self._memory_mib = int((memory_mib or host.memory_mib()) * _MEMORY)
        self._workers = Workers(1, program="nnunet_jobs.prediction.reader")
        markers.mkdir(parents=True, exist_ok=True)
        self._deaths = {path.name: _count(path) for path in markers.iterdir()}

    def __enter__(self) -> Self:
        self._workers.__enter__()
        self._workers.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._workers.__exit__(kind, error, trace)
        with contextlib.suppress(OSError):
            self._markers.rmdir()  # holds other parts' markers otherwise

    def in_turns(self, cases: Sequence[Case]) -> list[list[Case]]:
        """The cases in their order; each that was being read when an attempt ended comes by itself, when all others are written."""
        others = [case for case in cases if case.case not in self._deaths]
        return [turn for turn in (others, *([case] for case in cases if case.case in self._deaths)) if turn]

    def check(self, case: Case, *, file_ending: str, channels: int, reader: str, beat: Beat) -> None:
        """See :class:`Reading`."""
        deaths = self._deaths.get(case.case, 0)
        try:
            if deaths >= _MOST_DEATHS:
                message = f"{deaths} attempts ended while it was read and preprocessed; look at their logs, else write the files anew"
                raise _crashed(case, message)
            data = {"case": case.case, "images": [str(path) for path in case.images], "file_ending": file_ending, "channels": channels}
            limit = _TIME_LIMIT_S + _size(case) / (1 << 20)
            request = {**data, "reader": reader if deaths else None}
            try:
                answer = self._workers.call("check", request, timeout_s=limit, memory_mib=self._memory_mib, beat=beat)
            except Broken as broken:
                self._require_readers()
                raise _crashed(case, f"{broken}; write its files anew, or give the job more memory if they are large") from broken
            if answer["problem"]:
                raise DataError(answer["problem"], faults=[Fault(**fault) for fault in answer["faults"]])
        except DataError:
            self._forget(case)  # it has its reason now; files that were mended deserve a fresh try
            raise

    @contextlib.contextmanager
    def reading(self, case: Case) -> Iterator[None]:
        """See :class:`Reading`. Whatever Python lives to tell removes the marker."""
        marker = self._markers / case.case
        marker.write_text(str(self._deaths.get(case.case, 0) + 1))
        try:
            yield
        finally:
            self._forget(case)

    def _require_readers(self) -> None:
        """Raise Bug when no reading process works at all: then it is not the case's fault."""
        try:
            self._workers.call("ready", {}, timeout_s=_START_S, memory_mib=self._memory_mib, beat=lambda: None)
        except Broken as broken:
            raise Bug(f"the process that reads images cannot be started: {broken}; see whether Python starts on this host") from broken

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


def _size(case: Case) -> int:
    total = 0
    for path in case.images:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
