"""Checks cases in processes of the sandbox: a file that crashes or hangs its reader becomes a fault of one case."""

from __future__ import annotations

import dataclasses
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nnunet_jobs.contract.failure import Bug, Fault
from nnunet_jobs.dataset.sources import Source, SourceCase
from nnunet_jobs.dataset.validate import CheckedCase
from nnunet_jobs.dataset.worker import case_to_json, source_to_json
from nnunet_jobs.devices import host
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.sandbox.workers import MEMORY_SHARE, TIME_LIMIT_S, Broken, Died, NotStarted, TookTooLong, Workers, size_of, time_limit_s

_LOOK_S = 0.2  # seconds between checks for a stop request
_CASES_EACH, _BYTES_EACH = 16, 4 << 20  # a further worker is started for so many cases or bytes

Look = Callable[[], None]
Done = Callable[[CheckedCase], None]


def check_cases(
    source: Source,
    cases: Sequence[SourceCase],
    *,
    tolerance: float,
    processes: int,
    memory_mib: int | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    beat: Look = lambda: None,
    look: Look = lambda: None,
    done: Done = lambda _checked: None,
) -> list[CheckedCase]:
    """Check cases in separate processes, in the order given. A case that crashes, hangs or overloads its reader gets a fault.

    Args:
        source: Source of the cases.
        cases: Cases to check.
        tolerance: Tolerance of spacing and affine, see :func:`~nnunet_jobs.dataset.validate.check_case`.
        processes: Largest number of processes; fewer are started when there is little to read.
        memory_mib: Memory of all processes together in MiB; what the host allows if None.
        time_limit_s: Seconds for one case, and one more for each MiB.
        beat: Called when a reader makes progress; may raise to stop.
        look: Called several times a second; may raise to stop.
        done: Called with each case after its check.

    Raises:
        Bug: No reading process can be started.
    """
    if not cases:
        return []
    sizes = [size_of([*case.images, *([case.label] if case.label else [])]) for case in cases]
    count = max(1, min(processes, len(cases), max(len(cases) // _CASES_EACH, sum(sizes) // _BYTES_EACH)))
    allowed = int(min(memory_mib or sys.maxsize, host.memory_mib()) * MEMORY_SHARE) << 20
    crew = _Crew(source=source, cases=cases, sizes=sizes, tolerance=tolerance, least_s=time_limit_s, beat=beat, look=look)
    found: dict[int, CheckedCase] = {}
    again: list[int] = []

    def collect(number: int, checked: CheckedCase) -> None:
        if count > 1 and any(fault.code == Code.MEMORY_LIMIT for fault in checked.faults):
            again.append(number)  # its share was too small; alone it may use all
            return
        found[number] = checked
        done(checked)

    crew.run(range(len(cases)), workers=count, budget=allowed // count, done=collect)
    if again:
        count = 1
        crew.run(again, workers=1, budget=allowed, done=collect)
    return [found[number] for number in range(len(cases))]


class _Stopped(Exception):
    """The caller wants no more answers."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Crew:
    source: Source
    cases: Sequence[SourceCase]
    sizes: Sequence[int]
    tolerance: float
    least_s: float
    beat: Look
    look: Look

    def run(self, numbers: Sequence[int], *, workers: int, budget: int, done: Callable[[int, CheckedCase], None]) -> None:
        """Check these cases. Ends all processes, also when something is raised. The caller's functions run in this thread."""
        events: queue.SimpleQueue[tuple[int, CheckedCase] | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def go_on() -> None:
            if stopped.is_set():
                raise _Stopped

        def check(number: int) -> None:
            try:
                go_on()
                events.put((number, self._check(number, readers, budget=budget, go_on=go_on, alive=lambda: events.put(None))))
            except BaseException as error:
                events.put(error)

        with (
            Workers(workers, program="nnunet_jobs.dataset.worker", quiet=False) as readers,
            ThreadPoolExecutor(workers) as threads,
        ):
            try:
                for number in numbers:
                    threads.submit(check, number)
                left = len(numbers)
                while left:
                    try:
                        event = events.get(timeout=_LOOK_S)
                    except queue.Empty:
                        self.look()
                        continue
                    self.look()
                    if isinstance(event, BaseException):
                        raise event
                    self.beat()
                    if event is not None:
                        left -= 1
                        done(*event)
            finally:
                stopped.set()

    def _check(self, number: int, readers: Workers, *, budget: int, go_on: Look, alive: Look) -> CheckedCase:
        case, limit_s = self.cases[number], time_limit_s(self.sizes[number], least=self.least_s)
        file: str | None = None
        data = {
            "source": source_to_json(self.source),
            "case": case_to_json(case),
            "faults": [dataclasses.asdict(fault) for fault in self.source.faults if fault.case == case.case],
            "tolerance": self.tolerance,
            "budget": budget,
        }

        def heard(note: dict[str, Any] | None) -> None:
            nonlocal file
            if note is not None:
                file = note["file"]
            alive()

        try:
            answer = readers.call("check", data, timeout_s=limit_s, memory_mib=budget >> 20, beat=go_on, heard=heard)
            return CheckedCase.from_json(case, answer)
        except NotStarted as error:
            raise Bug(f"the process that reads images cannot be started: it ended {error.how}; see the log") from error
        except TookTooLong:
            code = Code.TIME_LIMIT
            message = f"was not read within {limit_s:.0f} s; check whether the disk hangs, else write the file again"
        except Died as error:
            code = Code.READER_CRASHED
            advice = "if the kernel killed it, give the step more memory, else write the file again"
            message = f"the process that read it ended {error.how}; {advice}"
        except Broken as error:
            code, message = Code.READER_CRASHED, f"{error}; write its files again"
        return CheckedCase(case=case, faults=(Fault(code=code, case=case.case, file=file, message=message),))
