"""Reads and preprocesses the next case and writes the last one while the network works.

It uses three threads and no processes, since every new process would import torch again. The calling thread runs the network.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from nnunet_jobs.context import StepContext
from nnunet_jobs.prediction.cases import Case
from nnunet_jobs.prediction.work import CaseWork, Record

_AHEAD = 2  # cases that are read ahead, and that wait to be written; each may hold a whole image's logits in memory
_LOOK_S = 1.0  # seconds between checks for a stop request while a thread works

_Result = TypeVar("_Result")


class CaseThreads:
    """Runs the three parts of a prediction for each case, each part in a separate thread.

    Args:
        context: Stop request, heartbeats and progress.
        read: First part.
        infer: Second part, in the calling thread.
        finish: Third part.
    """

    def __init__(
        self,
        context: StepContext,
        *,
        read: Callable[[CaseWork], CaseWork],
        infer: Callable[[CaseWork], CaseWork],
        finish: Callable[[CaseWork], Record],
    ) -> None:
        self._context = context
        self._read = read
        self._infer = infer
        self._finish = finish

    def run(self, cases: Sequence[Case], on_record: Callable[[Case, Record], None]) -> list[Record]:
        """Return one record for each case, in order. ``on_record`` is called after each."""
        records: list[Record] = []
        with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
            writing: deque[tuple[Case, Future[Record]]] = deque()
            try:
                for work in self._read_ahead(cases, reader):
                    self._context.check_stop()
                    self._infer(work)
                    while len(writing) >= _AHEAD:
                        self._collect(writing, records, len(cases), on_record)
                    writing.append((work.case, writer.submit(self._finish, work)))
                while writing:
                    self._collect(writing, records, len(cases), on_record)
            except BaseException:
                reader.shutdown(cancel_futures=True)
                writer.shutdown(cancel_futures=True)
                raise
        return records

    def _read_ahead(self, cases: Sequence[Case], reader: ThreadPoolExecutor) -> Iterator[CaseWork]:
        ahead: deque[Future[CaseWork]] = deque()
        for case in cases:
            ahead.append(reader.submit(self._read, CaseWork(case=case, problem=case.problem)))
            if len(ahead) > _AHEAD:
                yield self._wait(ahead.popleft())
        while ahead:
            yield self._wait(ahead.popleft())

    def _collect(
        self, writing: deque[tuple[Case, Future[Record]]], records: list[Record], total: int, on_record: Callable[[Case, Record], None]
    ) -> None:
        case, future = writing.popleft()
        record = self._wait(future)
        records.append(record)
        on_record(case, record)
        failed = sum(item["status"] == "failed" for item in records)
        self._context.progress("predict", len(records), total, **({"failed": failed} if failed else {}))

    def _wait(self, future: Future[_Result]) -> _Result:
        """Wait for a thread's result. Resampling big images takes minutes; a busy core counts as a heartbeat."""
        worked = time.process_time()
        while True:
            try:
                return future.result(timeout=_LOOK_S)
            except TimeoutError:
                if future.done():
                    raise  # the thread's own error
            self._context.check_stop()
            before, worked = worked, time.process_time()
            if worked - before > _LOOK_S / 4:
                self._context.beat()
