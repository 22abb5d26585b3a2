"""Work on foreign files in processes of its own: a file that hangs, crashes or eats memory costs one answer, never the step."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from nnunet_jobs.processes import reader_environment

log = logging.getLogger("nnunet_jobs")
_POLL_S = 0.2


class Broken(Exception):
    """A worker gave no answer. The text says why, without anything that the file says."""


class Died(Broken):
    """The worker's process ended, by itself or by somebody's signal. The next task gets a new one."""


class Workers:
    """A few processes that do tasks for others. Thread-safe; a context manager.

    What a worker prints is dropped: libraries put file names and header values into their warnings.

    Args:
        count: how many work at once. program: module that they run, :func:`nnunet_jobs.sandbox.worker.main` with its tasks.
    """

    def __init__(self, count: int, *, program: str) -> None:
        self._program = program
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

    def start(self) -> None:
        """Start a process now, so that it is ready when it is first needed."""
        worker = self._idle.get()
        self._idle.put(worker or _Worker(self._program))

    def call(self, task: str, data: dict[str, Any], *, timeout_s: float, memory_mib: int, beat: Callable[[], None]) -> dict[str, Any]:
        """Do one task.

        Args:
            task: name of a function in the worker. data: its argument, JSON. timeout_s: of wall time, and of CPU time.
            memory_mib: that the task may take beside what the worker has already. beat: called while waiting; may raise to give up.

        Raises:
            Died: its process ended. Broken: it took too long or too much memory, or raised. OSError: no space left where it writes.
        """
        worker = self._idle.get()
        try:
            if worker is None:
                worker = _Worker(self._program)
            request = {"task": task, "data": data, "timeout_s": timeout_s, "memory_mib": memory_mib}
            answer = worker.ask(request, timeout_s=timeout_s, beat=beat)
        except BaseException:
            if worker is not None:
                worker.kill()
            worker = None
            raise
        finally:
            self._idle.put(worker)
        if answer.get("errno") in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(answer["errno"], os.strerror(answer["errno"]))  # our disk, not their file
        if "error" in answer:
            log.debug("task %s failed by %s", task, answer.get("kind", "a limit"))  # for developers: people read the text
            raise Broken(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result


class _Worker:
    def __init__(self, program: str) -> None:
        self._answers, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", program, str(theirs)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(theirs,),
                env=reader_environment(),
            )  # fmt: skip
        except BaseException:
            os.close(self._answers)
            raise
        finally:
            os.close(theirs)
        self._rest = b""

    def ask(self, request: dict[str, Any], *, timeout_s: float, beat: Callable[[], None]) -> dict[str, Any]:
        pipe = self._process.stdin
        if pipe is None:
            raise RuntimeError("the worker has no stdin")
        try:
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError:
            raise Died(self._death()) from None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            beat()
            if time.monotonic() > deadline:
                raise Broken(f"it took longer than {timeout_s:.0f} s")
            if select.select([self._answers], [], [], _POLL_S)[0]:
                chunk = os.read(self._answers, 1 << 20)
                if not chunk:
                    raise Died(self._death())
                self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(5)
            return f"its reader died of signal {-code}" if code < 0 else f"its reader ended with code {code}"
        return "its reader ended without an answer"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        os.close(self._answers)
