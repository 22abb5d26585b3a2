"""Runs one attempt of a job: takes its lock, keeps its heartbeat, and records its phases and its single outcome."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nnunet_jobs import processes
from nnunet_jobs.contract.exit_codes import RunnerExit
from nnunet_jobs.contract.failure import Failure, FailureClass, Interrupted
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.state import Fenced, Phase
from nnunet_jobs.contract.job.usage import LOST
from nnunet_jobs.contract.storage.files import locked
from nnunet_jobs.patience import patiently
from nnunet_jobs.runner.child import failure_from
from nnunet_jobs.runner.heartbeat import Cancelled, Heartbeat
from nnunet_jobs.runner.usage_meter import UsageMeter

log = logging.getLogger("nnunet_jobs")

_LOCK_S = 0.05  # seconds between two attempts to get the lock of a runner that is about to end

Outcome = Mapping[str, Any] | Failure


class NotThisRunner(Exception):
    """This process is not the runner of this attempt; it ends without writing."""


class Attempt:
    """Represents the runner in one attempt: only the process inside :meth:`run` is its runner and writes its outcome.

    ``ready_fd`` is written to once the attempt is recorded. ``details`` are added to the outcome; ``usage`` measures what is used.
    """

    def __init__(self, job: JobDir, number: int, *, ready_fd: int | None = None) -> None:
        self.job = job
        self.number = number
        self.heartbeat = Heartbeat(job, number)
        self.usage = UsageMeter(job, number)
        self.details: dict[str, Any] = {"peak_memory_mib": 0}
        self._ready_fd = ready_fd

    def run(
        self,
        work: Callable[[], Outcome | None],
        *,
        first: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> int:
        """Do ``work`` as the attempt's runner and record its outcome; None when another process continues the attempt.

        Args:
            first: Context to enter before an earlier runner of the same attempt releases its lock.

        Returns the exit code; the outcome is in the job directory.
        """
        self.heartbeat.listen()
        processes.adopt_orphans()
        try:
            with first(), locked(self.job.runner_lock, poll=self.heartbeat.check_owner, interval=_LOCK_S):
                state = patiently(self.job.state, what="the job's state", meanwhile=self.heartbeat.check_owner)
                if state.attempt != self.number or state.phase.final:
                    raise NotThisRunner(f"attempt {self.number} was not begun or is over (attempt {state.attempt} is {state.phase})")
                self.heartbeat.beat()
                self.set_phase(Phase.WAITING, "starting")
                self._tell_ready()
                started = time.monotonic()
                outcome = self._outcome(work)
                if outcome is None:
                    return RunnerExit.DONE
                self.details["seconds"] = round(time.monotonic() - started, 3)
                return self._commit(outcome)
        except Fenced as error:
            log.warning("%s", error)
            return RunnerExit.FENCED
        except NotThisRunner as error:
            log.error("%s", error)
            return RunnerExit.REFUSED
        except Interrupted as error:  # while an earlier runner was still there
            log.warning("%s", error)
            return RunnerExit.REFUSED

    def waiting(self, message: str) -> None:
        """Say why the attempt waits."""
        log.info("%s", message)
        try:
            self.job.set_phase(self.number, Phase.WAITING, message)
        except OSError as error:
            log.error("why the job waits cannot be written now: %s", error)

    def set_phase(self, phase: Phase, message: str) -> None:
        """Record the phase of the attempt; wait while the storage is unavailable or full.

        Raises:
            Fenced: See :meth:`Heartbeat.check`.
            Interrupted: See :meth:`Heartbeat.check`.
            Cancelled: See :meth:`Heartbeat.check`.
        """
        patiently(lambda: self.job.set_phase(self.number, phase, message), what="the job's state", meanwhile=self.heartbeat.check)

    def _outcome(self, work: Callable[[], Outcome | None]) -> Outcome | None:
        try:
            outcome = work()
        except Fenced:
            self.usage.end(LOST)
            raise
        except NotThisRunner:
            raise
        except Exception as error:
            failure = replace(failure_from(error, attempt=self.number), cancelled=isinstance(error, Cancelled))
            log.error("%s: %s", failure.failure_class, failure.message, exc_info=failure.failure_class is FailureClass.BUG)
            outcome = failure
        if outcome is None:
            self.usage.hand_over()
        else:
            self.details |= self.usage.end(outcome if isinstance(outcome, Failure) else None)
        return outcome

    def _commit(self, outcome: Outcome) -> int:
        """Write the outcome; retry while the disk is full or the storage is unavailable."""
        if isinstance(outcome, Failure):
            final: Outcome = replace(outcome, details={**outcome.details, **self.details})
        else:
            final = {"attempt": self.number, **outcome, **self.details}
        patiently(lambda: self.job.finish(self.number, final), what="the outcome", meanwhile=self.heartbeat.beat)
        log.info("attempt %d %s", self.number, f"failed: {outcome.failure_class}" if isinstance(outcome, Failure) else "is done")
        return RunnerExit.FAILED if isinstance(outcome, Failure) else RunnerExit.DONE

    def _tell_ready(self) -> None:
        if self._ready_fd is not None:
            os.write(self._ready_fd, b"ready")
            os.close(self._ready_fd)
            self._ready_fd = None
