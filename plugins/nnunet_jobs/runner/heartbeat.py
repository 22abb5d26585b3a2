"""Keeps a runner's heartbeat, and notices what ends its attempt: stop requests, fences, signals."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from typing import TypeVar

from nnunet_jobs.contract.failure import Interrupted
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.liveness import write_counter
from nnunet_jobs.patience import OutageLog

log = logging.getLogger("nnunet_jobs")

T = TypeVar("T")

BEAT_S = 1.0


class Cancelled(Interrupted):
    """A user requested that this job stops."""


class Heartbeat:
    """Keeps an attempt's heartbeat and notices what should end it. If the runner's one thread is stuck, the heartbeat stops too."""

    def __init__(self, job: JobDir, attempt: int) -> None:
        self.job = job
        self.attempt = attempt
        self._beats = job.beat()
        self._next_beat = 0.0
        self._write_trouble, self._read_trouble = OutageLog("heartbeat"), OutageLog("stop requests")
        self._signal: int | None = None
        self._wake_r, self._wake_w = os.pipe()
        for fd in (self._wake_r, self._wake_w):
            os.set_blocking(fd, False)

    def listen(self) -> None:
        """Handle the process's signals: TERM and INT end the job gracefully, a lost terminal does not."""

        def remember(number: int, _frame: object) -> None:
            self._signal = number

        signal.signal(signal.SIGTERM, remember)
        signal.signal(signal.SIGINT, remember)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # with a handler, a child's end interrupts the sleep
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)

    def beat(self) -> None:
        """Increase the heartbeat counter when a second has passed since the last time."""
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + BEAT_S
        self._beats += 1
        try:
            write_counter(self.job.heartbeat, self._beats)
        except OSError as error:
            self._write_trouble.failed(error)
        else:
            self._write_trouble.answered()

    def check_owner(self) -> None:
        """Raise when this attempt must end.

        Raises:
            Fenced: A newer attempt owns the job.
            Interrupted: This process is to end.
        """
        self._ask(lambda: self.job.check_fence(self.attempt))
        if self._signal is not None:
            raise Interrupted(f"the runner got {signal.Signals(self._signal).name} (host shutdown?); finished work is kept")

    def check(self) -> None:
        """Beat, then raise when the job must stop.

        Raises:
            Fenced: See :meth:`check_owner`.
            Interrupted: See :meth:`check_owner`.
            Cancelled: A user requested it.
        """
        self.beat()
        self._ask(lambda: self.job.check_fence(self.attempt))
        reason = self._ask(self.job.cancel_requested)
        if reason is not None:
            raise Cancelled(f"cancelled: {reason}")  # a signal that came with it only enforces the request
        self.check_owner()

    def _ask(self, question: Callable[[], T]) -> T | None:
        """Read the job's files; return None while the storage is unavailable, and read them again later."""
        try:
            answer = question()
        except OSError as error:
            self._read_trouble.failed(error)
            return None
        self._read_trouble.answered()
        return answer

    def sleep(self) -> None:
        """Sleep until the next heartbeat is due, a signal arrives, or a child ends."""
        if select.select([self._wake_r], [], [], max(0.0, self._next_beat - time.monotonic()))[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_r, 4096)
