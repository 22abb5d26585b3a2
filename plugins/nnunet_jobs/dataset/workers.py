"""A few long-lived reading processes, looked after by one thread: what they die of, or hang on, becomes a fault of one case."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nnunet_jobs.contract.failure import Bug, Fault
from nnunet_jobs.dataset.sources import Source, SourceCase
from nnunet_jobs.dataset.validate import CheckedCase
from nnunet_jobs.dataset.worker import BEAT, case_to_json, source_to_json
from nnunet_jobs.devices import host
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.processes import reader_environment

log = logging.getLogger("nnunet_jobs")
TIME_LIMIT_S = 60.0  # for a case without bytes
_BYTES_PER_S = 1 << 20  # slower than any disk that a hospital would wait for
_LOOK_S = 0.2  # seconds between looks for a stop request and at the clock
_START_S = 120.0  # for Python and its imports, on a busy machine
_STARTS = 3  # that may fail in a row before nothing is tried any more
_LEAVE_S = 5.0  # for a killed process; one that hangs in the kernel is left behind
_MEMORY = 0.8  # share of what the host or its cgroup allows that all workers together may use
_CASES_EACH, _BYTES_EACH = 16, 4 << 20  # a further worker is worth its start for so many cases or bytes

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
    """Check cases in processes of their own, in the order given. A case that kills, hangs or bursts its reader gets a fault for it.

    Args:
        source: they come from. tolerance: of spacing and affine, see :func:`~nnunet_jobs.dataset.validate.check_case`.
        processes: at most so many; fewer when there is little to read. memory_mib: for all together, default what the host allows.
        time_limit_s: for one case, plus a second for each MiB. beat: called when a reader shows life; may raise to stop.
        look: called several times a second; may raise to stop. done: called with each case when it is checked.

    Raises:
        Bug: no reading process can be started.
    """
    if not cases:
        return []
    sizes = [_size(case) for case in cases]
    count = max(1, min(processes, len(cases), max(len(cases) // _CASES_EACH, sum(sizes) // _BYTES_EACH)))
    allowed = int(min(memory_mib or sys.maxsize, host.memory_mib()) * _MEMORY) << 20
    hello = {**source_to_json(source), "tolerance": tolerance}
    pool = _Pool(hello=hello, source=source, time_limit_s=time_limit_s, beat=beat, look=look)
    found: dict[int, CheckedCase] = {}
    again: list[int] = []

    def collect(number: int, checked: CheckedCase) -> None:
        if count > 1 and any(fault.code == Code.MEMORY_LIMIT for fault in checked.faults):
            again.append(number)  # its share was too small; alone it may use all
            return
        found[number] = checked
        done(checked)

    work = deque((number, case, size) for number, (case, size) in enumerate(zip(cases, sizes, strict=True)))
    pool.run(work, workers=count, budget=allowed // count, done=collect)
    if again:
        alone = deque((number, cases[number], sizes[number]) for number in again)
        count = 1
        pool.run(alone, workers=1, budget=allowed, done=collect)
    return [found[number] for number in range(len(cases))]


def _size(case: SourceCase) -> int:
    """Bytes on disk; a file that is not there has none."""
    total = 0
    for path in (*case.images, *([case.label] if case.label else [])):
        with contextlib.suppress(OSError):
            total += os.stat(path).st_size
    return total


_Item = tuple[int, SourceCase, int]


class _Reader:
    """One process, what it was given, and what it has said."""

    def __init__(self, hello: Mapping[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nnunet_jobs.dataset.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=reader_environment(),
        )
        self.ready = False
        self.item: _Item | None = None
        self.file: str | None = None
        self.deadline = time.monotonic() + _START_S
        self._said = b""
        with contextlib.suppress(BrokenPipeError):  # its end is seen where its answers are awaited
            self._send(hello)

    def give(self, item: _Item, source: Source, limit_s: float) -> None:
        _, case, _ = item
        self.item, self.file, self.deadline = item, None, time.monotonic() + limit_s
        faults = [dataclasses.asdict(fault) for fault in source.faults if fault.case == case.case]
        with contextlib.suppress(BrokenPipeError):
            self._send({"case": case_to_json(case), "faults": faults})

    def hear(self) -> list[dict[str, Any]] | None:
        """Whole messages that have come; None when the process has ended."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._said = (self._said + data).split(b"\n")
        self._said = self._said.lstrip(BEAT)
        return [json.loads(line.lstrip(BEAT)) for line in lines]

    def end(self) -> int | None:
        """Kill and collect. Returns how it ended, None when even a kill does not end it."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        try:
            return self.process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            log.warning("reading process %d hangs in the kernel and is left behind", self.process.pid)
            return None

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()


@dataclasses.dataclass(slots=True, kw_only=True)
class _Pool:
    hello: Mapping[str, Any]
    source: Source
    time_limit_s: float
    beat: Look
    look: Look
    _readers: set[_Reader] = dataclasses.field(default_factory=set)
    _failed_starts: int = 0

    def run(self, work: deque[_Item], *, workers: int, budget: int, done: Callable[[int, CheckedCase], None]) -> None:
        """Work through the queue. Ends all processes, also when something is raised."""
        with selectors.DefaultSelector() as selector:
            try:
                while work or any(reader.item for reader in self._readers):
                    while len(self._readers) < min(workers, len(work) + sum(reader.item is not None for reader in self._readers)):
                        self._start(selector, budget)
                    ready = selector.select(_LOOK_S)
                    self.look()
                    if ready:
                        self.beat()
                    for key, _ in ready:
                        self._listen(key.data, selector, work, done)
                    for reader in [reader for reader in self._readers if time.monotonic() > reader.deadline]:
                        self._give_up(reader, selector, done)
            finally:
                for reader in list(self._readers):
                    self._drop(reader, selector)

    def _start(self, selector: selectors.BaseSelector, budget: int) -> None:
        reader = _Reader({**self.hello, "budget": budget})
        self._readers.add(reader)
        assert reader.process.stdout is not None
        selector.register(reader.process.stdout, selectors.EVENT_READ, reader)

    def _listen(
        self, reader: _Reader, selector: selectors.BaseSelector, work: deque[_Item], done: Callable[[int, CheckedCase], None]
    ) -> None:
        messages = reader.hear()
        if messages is None:
            code = self._drop(reader, selector)
            self._mourn(reader, code, done)
            return
        for message in messages:
            if "file" in message:
                reader.file = message["file"]
            elif "answer" in message and reader.item is not None:
                (number, case, _), reader.item = reader.item, None
                done(number, CheckedCase.from_json(case, message["answer"]))
            elif "ready" in message:
                reader.ready, self._failed_starts = True, 0
        if reader.ready and reader.item is None:
            if not work:
                reader.deadline = float("inf")
                return
            item = work.popleft()
            reader.give(item, self.source, self.time_limit_s + item[2] / _BYTES_PER_S)

    def _mourn(self, reader: _Reader, code: int | None, done: Callable[[int, CheckedCase], None]) -> None:
        """A process has ended by itself or by somebody else: the case it had gets the fault."""
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        if reader.item is None:
            if not reader.ready:
                self._failed_starts += 1
                if self._failed_starts >= _STARTS:
                    raise Bug(f"the process that reads images cannot be started: it ended {how} {_STARTS} times; see the log")
            return
        message = f"the process that read it ended {how}; if the kernel killed it, give the step more memory, else write the file anew"
        self._report(reader, Code.READER_CRASHED, message, done)

    def _give_up(self, reader: _Reader, selector: selectors.BaseSelector, done: Callable[[int, CheckedCase], None]) -> None:
        self._drop(reader, selector)
        if reader.item is None:
            raise Bug(f"the process that reads images was not ready after {_START_S:.0f} s")
        limit = self.time_limit_s + reader.item[2] / _BYTES_PER_S
        message = f"was not read within {limit:.0f} s; look whether the disk hangs, else write the file anew"
        self._report(reader, Code.TIME_LIMIT, message, done)

    def _report(self, reader: _Reader, code: Code, message: str, done: Callable[[int, CheckedCase], None]) -> None:
        if reader.item is not None:
            number, case, _ = reader.item
            fault = Fault(code=code, case=case.case, file=reader.file, message=message)
            done(number, CheckedCase(case=case, faults=(fault,)))

    def _drop(self, reader: _Reader, selector: selectors.BaseSelector) -> int | None:
        self._readers.discard(reader)
        with contextlib.suppress(KeyError, ValueError):
            selector.unregister(reader.process.stdout)  # type: ignore[arg-type]
        ended = reader.process.poll()
        code = reader.end()
        return ended if ended is not None else code
