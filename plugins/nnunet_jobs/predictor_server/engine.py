"""Predicts uploaded cases in three threads, so that one request's image is read while another's is in the network.

A cancelled request stops at its next window; its files are removed when the thread that works on them is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nnunet_jobs.prediction.predictor import Predictor
from nnunet_jobs.prediction.work import CaseWork, Record
from nnunet_jobs.predictor_server.metrics import Metrics

_FIRST_GUESS_S = 5.0
_SMOOTHING = 0.2


class Busy(Exception):
    """The server has as many requests as allowed. ``retry_after_s``: seconds after which to try again."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the server has as many requests as it takes; ask again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class InferenceEngine:
    """Manages the threads of a server. ``limit``: largest number of requests in it, including waiting ones."""

    def __init__(self, *, limit: int, metrics: Metrics) -> None:
        self.limit = limit
        self.inside = 0
        self._metrics = metrics
        self._usual_s = _FIRST_GUESS_S
        self._threads = {name: ThreadPoolExecutor(max_workers=1, thread_name_prefix=name) for name in ("read", "network", "write")}

    @contextlib.asynccontextmanager
    async def admitted(self, folder: Path) -> AsyncIterator[Admission]:
        """Admit a request with a folder, which is always removed afterwards.

        Raises:
            Busy: There is no place.
        """
        if self.inside >= self.limit:
            raise Busy(max(1, round(self._usual_s * self.inside)))
        self.inside += 1
        self._metrics.inside.set(self.inside)
        admission = Admission(folder)
        try:
            folder.mkdir(parents=True)
            yield admission
        finally:
            admission.when_idle(lambda: self._leave(folder))

    async def predict(self, work: CaseWork, predictor: Predictor, admission: Admission) -> Record:
        """Read, infer and write one case into ``output`` of the admission's folder.

        Raises:
            asyncio.CancelledError: the caller gave up; the work stops at its next window.
        """
        output, scratch = admission.folder / "output", admission.folder / "scratch"
        for folder in (output, scratch):
            folder.mkdir()
        begun = time.monotonic()
        try:
            await self._do("read", admission, predictor.read, work)
            await self._do("network", admission, predictor.infer, work, scratch)
            record: Record = await self._do("write", admission, predictor.finish, work, output, scratch)
        except asyncio.CancelledError:
            work.abandoned.set()
            raise
        self._usual_s += _SMOOTHING * (time.monotonic() - begun - self._usual_s)
        return record

    def close(self) -> None:
        """Wait for what the threads are doing."""
        for pool in self._threads.values():
            pool.shutdown(cancel_futures=True)

    async def _do(self, phase: str, admission: Admission, act: Callable[..., Any], *arguments: Any) -> Any:
        def timed() -> Any:
            with self._metrics.phase.labels(phase).time():
                return act(*arguments)

        admission.running = self._threads[phase].submit(timed)
        return await asyncio.wrap_future(admission.running)

    def _leave(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.inside -= 1
        self._metrics.inside.set(self.inside)


class Admission:
    """A request's place in the server. ``running``: its piece of work in a thread, if there is one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: Future[Any] | None = None

    def when_idle(self, act: Callable[[], None]) -> None:
        """Call ``act`` once no thread works on the request any more: at once, or in the event loop when the thread ends."""
        loop = asyncio.get_running_loop()
        if self.running is None or self.running.done():
            act()
        else:
            self.running.add_done_callback(lambda _future: loop.call_soon_threadsafe(act))
