"""Defines the interface of all backends, and how a job is watched through its files."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from nnunet_jobs.contract.failure import ConfigError, Failure, FailureClass, JobError, Lost
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.job.usage import record_ended_attempts
from nnunet_jobs.contract.storage.files import locked
from nnunet_jobs.contract.storage.permissions import explain_permission_error, workspace_umask
from nnunet_jobs.contract.storage.workspace import Workspace

DEFAULT_LOST_AFTER_S = 120.0
_LOOK_S = 0.05
_GONE = "the runner ended without an outcome (killed, or the host restarted)"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """Describes a job at one moment. ``result``, the step's result, or ``failure`` is set when the attempt is over."""

    attempt: int
    phase: Phase
    message: str = ""
    result: dict[str, Any] | None = None
    failure: Failure | None = None

    @property
    def final(self) -> bool:
        """Return whether this attempt is over."""
        return self.result is not None or self.failure is not None

    def unwrap(self) -> dict[str, Any]:
        """Return the step's result.

        Raises:
            JobError: The job failed; the exception has the failure's class.
        """
        if self.failure is not None:
            raise self.failure.to_error()
        if self.result is None:
            raise ValueError(f"attempt {self.attempt} is still {self.phase}")
        return self.result


class Watch:
    """Records for one watcher of a job how long the heartbeat has not moved.

    Only the watcher's own monotonic clock counts. At most a quarter of the limit is counted between two checks, so that
    a watcher that was stopped for a while does not conclude that the runner has ended.
    """

    def __init__(self, *, lost_after_s: float = DEFAULT_LOST_AFTER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost_after_s = lost_after_s
        self._clock = clock
        self._last = clock()
        self._seen: tuple[int, int] | None = None
        self._silent = 0.0

    def forgive(self) -> None:
        """Start counting again: the storage did not answer, so that the heartbeat could not be written or read."""
        self._last = self._clock()
        self._silent = 0.0

    def silent_s(self, job: JobDir, attempt: int) -> float:
        """Return for how many seconds this watcher has not seen the attempt's heartbeat move."""
        now = self._clock()
        passed = min(max(0.0, now - self._last), self.lost_after_s / 4)
        self._last = now
        seen = (attempt, job.beat())
        if seen != self._seen:
            self._seen = seen
            self._silent = 0.0
        else:
            self._silent += passed
        return self._silent


class Backend(ABC):
    """Base class of backends, which define where jobs run.

    A backend implements :meth:`start` alone: it starts ``python -m nnunet_jobs run JOB_DIR`` somewhere. The job's folder, its attempts,
    what its files say, cancelling it and its end are the same for all backends. CONTRIBUTING.md has an example.
    """

    name: str = ""

    runs_here: ClassVar[bool] = True
    """Whether jobs run on the hosts of Airflow's workers, so that what is installed there matters."""

    submit_timeout_s: float = 120.0
    look_again_s: float = 0.05
    """Seconds between two checks of a cancelled attempt that ``submit`` waits for."""

    def submit(self, spec: JobSpec) -> JobDir:
        """Make sure that the job is done or that one attempt of it is active. This is idempotent, also between hosts.

        A finished or running job is found again. After a failed, lost or cancelled attempt the next one starts. If an
        attempt is being cancelled, this waits for its end and starts a new one.

        Raises:
            NotMounted: The workspace's share is not mounted.
            ConfigError: This user may not write into the folder of jobs.
        """
        try:
            with workspace_umask(spec.workspace):
                job = self._submit(self._adapted(spec))
                if job.result() is not None:
                    self._finish(job, read_status(job))
                return job
        except PermissionError as error:
            raise ConfigError(where="[nnunet]", field="jobs", problem=explain_permission_error(error)) from error

    def _submit(self, spec: JobSpec) -> JobDir:
        job = JobDir.create(spec)
        deadline = time.monotonic() + self.submit_timeout_s + spec.resources.grace_s

        def give_up() -> None:
            if time.monotonic() > deadline:
                raise Lost(f"{job.path}: another submit or a cancelled attempt of this job does not end; look for a stopped process there")

        # The lock is held until the runner is on record, so an attempt without a runner means that its submitter has
        # ended.
        with locked(job.path / "submit.lock", poll=give_up, interval=0.02, parents=False):
            while (alive := self.alive(job)) and job.cancel_requested() is not None:
                give_up()
                time.sleep(self.look_again_s)
            record_ended_attempts(job)
            if alive or job.result() is not None:
                return job
            state = job.state()
            if state.attempt > 0 and not state.phase.final:
                message = _GONE if state.pid else "the submitter ended before the runner was on record"
                self._declare(job, state.attempt, FailureClass.LOST, message)
                record_ended_attempts(job)
                if job.result() is not None:
                    return job
            attempt = job.begin_attempt(expected=state.attempt)
            if attempt is not None:
                try:
                    self.start(job, spec, attempt)
                except JobError as error:
                    self._declare(job, attempt, error.failure_class, str(error))
        return job

    @abstractmethod
    def start(self, job: JobDir, spec: JobSpec, attempt: int) -> None:
        """Start the runner of an attempt, and return when it is on record where :meth:`alive` looks.

        Raises:
            JobError: No runner was started. The error becomes the attempt's failure, so its class, such as
                :class:`ConfigError` or :class:`Lost`, decides about another attempt.
        """

    def wait_until_on_record(self, job: JobDir, attempt: int, *, timeout_s: float) -> None:
        """Wait until the runner of an attempt has written itself into ``state.json``, or the attempt is over; for :meth:`start`.

        Args:
            job: Folder of the job.
            attempt: Number of the attempt.
            timeout_s: Limit in seconds.

        Raises:
            Lost: The runner is not on record by then.
        """
        deadline = time.monotonic() + timeout_s
        while (state := job.state()).attempt == attempt and not (state.pid or state.phase.final):
            if time.monotonic() > deadline:
                raise Lost(f"the runner is not on record after {timeout_s:.0f} s; look into {job.log}")
            time.sleep(_LOOK_S)

    def alive(self, job: JobDir) -> bool:
        """Return whether the newest attempt is active, so that a submit attaches to it.

        By default, its runner is on record in ``state.json`` and not known to have ended.
        """
        state = job.state()
        return state.attempt > 0 and not state.phase.final and state.pid > 0 and not job.runner_gone()

    def status(self, job: JobDir, watch: Watch) -> JobStatus:
        """Check a job. A lost attempt is recorded as a failure, so that the next submit starts a new one."""
        status = read_status(job)
        if status.attempt == 0:
            return status
        if not status.final and self._check_attempt(job, status.attempt, watch):
            status = read_status(job)  # the runner may have written its outcome a moment ago
        return self._finish(job, status) if status.final else status

    def cancel(self, job: JobDir, reason: str) -> None:
        """Ask the runner, on any host, to save and stop. This returns at once; :meth:`status` tells when it has stopped."""
        job.request_cancel(reason)

    def examine(self, workspace: Workspace) -> Iterator[tuple[bool, str]]:
        """Yield for the doctor, for each thing that jobs need where they run, whether it exists, and a message or fix."""
        yield from ()

    # --- for the backends of this package -----------------------------------------------------------------------
    def _adapted(self, spec: JobSpec) -> JobSpec:
        """Return the specification that a submit records, for backends that must change it."""
        return spec

    def _check_attempt(self, job: JobDir, attempt: int, watch: Watch) -> bool:
        """Check an attempt that is not over, and declare it lost if it is. Returns whether to read its status again."""
        if job.runner_gone():
            reason = _GONE
        else:
            silent = watch.silent_s(job, attempt)
            if silent < watch.lost_after_s:
                return False
            reason = f"no heartbeat of the runner for {silent:.0f} s (limit {watch.lost_after_s:.0f} s)"
        self._declare(job, attempt, FailureClass.LOST, reason)
        return True

    def _declare(self, job: JobDir, attempt: int, failure_class: FailureClass, message: str, **more: Any) -> bool:
        """Record the failure of an attempt for its runner. Returns False if the attempt is over or not the newest."""
        return job.declare_lost(attempt, Failure(failure_class=failure_class, message=message, attempt=attempt, **more))

    def _finish(self, job: JobDir, status: JobStatus) -> JobStatus:
        """Do the remaining work after an attempt's end, at each check. Returns the status, which may not be final yet."""
        record_ended_attempts(job)
        return status


def read_status(job: JobDir) -> JobStatus:
    """Read a job's status from its files. A failure counts when its final phase is on record."""
    state = job.state()
    result = job.result()
    if result is not None:
        return JobStatus(attempt=state.attempt, phase=Phase.DONE, result=result.get("result", {}))
    failure = job.failure() if state.phase is Phase.FAILED else None
    return JobStatus(attempt=state.attempt, phase=state.phase, message=state.message, failure=failure)
