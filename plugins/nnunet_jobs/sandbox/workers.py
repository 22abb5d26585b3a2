"""Runs work on foreign files in separate processes: a file that hangs, crashes or uses too much memory fails one task, never the step."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nnunet_jobs.processes import reader_environment
from nnunet_jobs.sandbox.worker import ALIVE

log = logging.getLogger("nnunet_jobs")
TIME_LIMIT_S = 60.0
"""Seconds for a case of size 0; see :func:`time_limit_s`."""
MEMORY_SHARE = 0.8
"""Share of the memory of the host or its cgroup that all reading processes of a step may use together."""
START_S = 120.0
"""Seconds for the start of Python and its imports, on a busy machine."""
_BYTES_PER_S = 1 << 20  # slower than any usable disk
_POLL_S = 0.2
_STARTS = 3  # starts that may fail in a row before the work is given up
_LEAVE_S = 5.0  # seconds for a killed process to end; one that hangs in the kernel is left behind


class Broken(Exception):
    """A worker gave no answer. The message says why, without content of the file."""


class TookTooLong(Broken):
    """The task exceeded its time limit."""


class Died(Broken):
    """The worker's process ended, by itself or by a signal. The next task gets a new one.

    Attributes:
        how: How it ended, such as ``by SIGABRT`` or ``with exit code 7``.
    """

    def __init__(self, text: str, *, how: str) -> None:
        super().__init__(text)
        self.how = how


class NotStarted(Died):
    """No process could be started, which is not the fault of the file."""


def time_limit_s(size: int, *, least: float = TIME_LIMIT_S) -> float:
    """Return the time limit of a case in seconds: ``least``, and one for each MiB of its ``size`` in bytes."""
    return least + size / _BYTES_PER_S


def size_of(paths: Iterable[Path]) -> int:
    """Return the bytes on disk; a missing file has none."""
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += os.stat(path).st_size
    return total


class Workers:
    """Runs tasks in a few processes. Thread-safe; a context manager.

    Args:
        count: Number of processes that work at the same time.
        program: Module that they run, :func:`nnunet_jobs.sandbox.worker.main` with its tasks.
        quiet: Drop what they print, since warnings of libraries contain file names and header values, which must not
            be logged.
    """

    def __init__(self, count: int, *, program: str, quiet: bool = True) -> None:
        self._program, self._quiet = program, quiet
        # The kernel ends a process with the thread that started it, so one permanent thread starts them all.
        self._starter = ThreadPoolExecutor(1)
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        self._count = max(1, count)
        for _ in range(self._count):
            self._idle.put(None)  # started when first needed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for _ in range(self._count):
            worker = self._idle.get()
            if worker is not None:
                worker.kill()
        self._starter.shutdown()

    def start(self) -> None:
        """Start a process now, so that it is ready when it is first needed."""
        worker = self._idle.get()
        self._idle.put(worker or self._new())

    def call(
        self,
        task: str,
        data: dict[str, Any],
        *,
        timeout_s: float,
        memory_mib: int,
        beat: Callable[[], None],
        heard: Callable[[dict[str, Any] | None], None] = lambda _note: None,
    ) -> dict[str, Any]:
        """Do one task.

        Args:
            task: Name of a function in the worker.
            data: Its argument, JSON.
            timeout_s: Limit of wall time and of CPU time, from when the process is ready.
            memory_mib: Memory in MiB that the task may use in addition to what the worker uses already.
            beat: Called several times a second while waiting; may raise to give up.
            heard: Called with each note of the task, and with None for each heartbeat.

        Raises:
            NotStarted: No process could be started.
            Died: The process ended.
            Broken: The task took too long or too much memory, or raised.
            OSError: There is no space left where it writes.
        """
        request = {"task": task, "data": data, "timeout_s": timeout_s, "memory_mib": memory_mib}
        answer = self._ask(request, timeout_s=timeout_s, beat=beat, heard=heard)
        if answer.get("errno") in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(answer["errno"], os.strerror(answer["errno"]))  # a problem of this disk, not of the file
        if "error" in answer:
            log.debug("task %s failed by %s", task, answer.get("kind", "a limit"))  # for developers; users get the message
            raise Broken(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _new(self) -> _Worker:
        return self._starter.submit(_Worker, self._program, quiet=self._quiet).result()

    def _ask(
        self, request: dict[str, Any], *, timeout_s: float, beat: Callable[[], None], heard: Callable[[dict[str, Any] | None], None]
    ) -> dict[str, Any]:
        failed = 0
        worker = self._idle.get()
        try:
            while True:
                if worker is None:
                    worker = self._new()
                try:
                    return worker.ask(request, timeout_s=timeout_s, beat=beat, heard=heard)
                except Died as died:
                    if worker.ready:
                        raise
                    failed += 1
                    if failed == _STARTS:
                        raise NotStarted(str(died), how=f"{died.how} {_STARTS} times") from None
                    worker.kill()
                    worker = None
        except BaseException:
            if worker is not None:
                worker.kill()
            worker = None
            raise
        finally:
            self._idle.put(worker)


class _Worker:
    def __init__(self, program: str, *, quiet: bool) -> None:
        self.ready = False
        self._answers, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", program, str(theirs), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL if quiet else 2,
                stderr=subprocess.DEVNULL if quiet else None,
                pass_fds=(theirs,),
                env=reader_environment(),
            )
        except BaseException:
            os.close(self._answers)
            raise
        finally:
            os.close(theirs)
        self._rest = b""

    def ask(
        self, request: dict[str, Any], *, timeout_s: float, beat: Callable[[], None], heard: Callable[[dict[str, Any] | None], None]
    ) -> dict[str, Any]:
        pipe = self._process.stdin
        if pipe is None:
            raise RuntimeError("the worker has no stdin")
        try:
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError:
            raise self._death() from None
        deadline, begun = time.monotonic() + START_S, False
        while True:
            if time.monotonic() > deadline:
                if begun:
                    raise TookTooLong(f"it took longer than {timeout_s:.0f} s")
                raise NotStarted(f"its reader was not ready after {START_S:.0f} s", how=f"after {START_S:.0f} s, not yet ready")
            if (message := self._message()) is None:
                beat()
                if select.select([self._answers], [], [], _POLL_S)[0]:
                    chunk = os.read(self._answers, 1 << 20)
                    if not chunk:
                        raise self._death()
                    self._rest += chunk
                    heard(None)
            elif "begun" in message:
                self.ready = begun = True
                deadline = time.monotonic() + timeout_s
            elif "note" in message:
                heard(message["note"])
            else:
                return message

    def _message(self) -> dict[str, Any] | None:
        """Return the next complete message; None if there is none yet."""
        self._rest = self._rest.lstrip(ALIVE)
        if b"\n" not in self._rest:
            return None
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _death(self) -> Died:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(5)
            if code < 0:
                return Died(f"its reader died of signal {-code}", how=f"by {signal.Signals(-code).name}")
            return Died(f"its reader ended with code {code}", how=f"with exit code {code}")
        return Died("its reader ended without an answer", how="without an answer")

    def kill(self) -> None:
        self._process.kill()
        try:
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            log.warning("reading process %d hangs in the kernel and is left behind", self._process.pid)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        os.close(self._answers)
