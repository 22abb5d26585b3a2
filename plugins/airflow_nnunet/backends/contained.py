"""Base of the Docker and Kubernetes backends, which run jobs in containers.

While a runner's heartbeat moves, the runtime is not asked, so that its outage ends no job. A container is checked
before its runner is on record, when the heartbeat stops, and at the end.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

from airflow_nnunet.backends.base import Backend, JobStatus, Watch, read_status
from airflow_nnunet.backends.container_runtime import (
    CANNOT_ASK,
    ContainerRuntime,
    ContainerStage,
    ContainerStatus,
    RequestRejected,
    Unreachable,
)
from airflow_nnunet.backends.job_container import give_to
from airflow_nnunet.backends.mounts import Mode, Mount, mounts_for
from nnunet_jobs.contract.exit_codes import RunnerExit
from nnunet_jobs.contract.failure import ConfigError, FailureClass, Lost
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.job.usage import record_ended_attempts
from nnunet_jobs.contract.storage.files import PRIVATE
from nnunet_jobs.contract.storage.permissions import make_root

log = logging.getLogger(__name__)

# A container ends a moment after its runner wrote the outcome. This is how long to wait for its exit code.
_FINISH_S = 20.0
# Shared storage may show a file late on another host. For this long an end without an outcome is not trusted.
_FILES_S = 20.0
_BEAT_S = 3.0  # a running runner's heartbeat moves within this time
_OUTCOME_WRITTEN = (RunnerExit.DONE, RunnerExit.FAILED)


class ContainedBackend(Backend):
    """Runs one container for each attempt of a job. Its name has both, so that every process finds the same container.

    Attributes:
        runtime: Runtime of the containers.
        schedule_timeout_s: Seconds to wait until a host has free resources; 0 means forever.
        start_timeout_s: Seconds from then until the runner is on record.
        keep: Keep containers that have ended, so that a person can look at them.
    """

    runs_here = False
    look_again_s = 1.0
    files_s = _FILES_S
    finish_s = _FINISH_S
    runtime: ContainerRuntime
    schedule_timeout_s: float = 0.0
    start_timeout_s: float = 900.0
    keep: bool = False

    def __init__(self) -> None:
        self._since: dict[tuple[str, int, str], float] = {}
        self._finished: set[tuple[str, int]] = set()

    @abstractmethod
    def user(self, job: JobDir) -> tuple[int, int]:
        """Return the user and group id that the job runs as."""

    def own_mounts(self, spec: JobSpec) -> tuple[Mount, ...]:
        """Return the folders that all containers of this runtime see beside those of their step."""
        return ()

    def start(self, job: JobDir, spec: JobSpec, attempt: int) -> None:
        """Create the container, which is the record of the attempt. This does not wait for the runner, which may queue."""
        try:
            self.runtime.remove_earlier(job, attempt)
            self._make_folders(job, spec)
            self.runtime.create(job, spec, attempt)
        except RequestRejected as error:
            message = f"no container was started: {error}"
            raise (Lost(message) if error.transient else ConfigError(message)) from error
        except Unreachable as error:
            raise Lost(f"whether a container was started is not known: {error}") from error

    def alive(self, job: JobDir) -> bool:
        """See :meth:`Backend.alive`.

        Raises:
            Lost: The runtime does not answer and the heartbeat does not move, so that nothing is known now.
        """
        state = job.state()
        if state.attempt == 0 or state.phase.final:
            return False
        try:
            container = self.runtime.look(job, state.attempt)
        except CANNOT_ASK as error:
            if state.pid and _beats(job):
                return True
            raise Lost(f"{self.runtime.name(job, state.attempt)}: {error}") from error
        return container is not None and container.stage.alive

    def wants_a_look(self, job: JobDir, attempt: int) -> bool:
        """Return whether an attempt must be checked although its heartbeat moves."""
        return False

    def cancel(self, job: JobDir, reason: str) -> None:
        """Ask the runner to save and stop; the container of an attempt without a runner is removed."""
        super().cancel(job, reason)
        try:
            self._take_back(job, job.state().attempt, reason)
        except CANNOT_ASK as error:
            log.warning("%s is not stopped, but its runner will see the request: %s", self.runtime.name(job, job.state().attempt), error)

    # --- private ------------------------------------------------------------------------------------------------
    def _check_attempt(self, job: JobDir, attempt: int, watch: Watch) -> bool:
        begun = job.state().pid > 0
        silent = watch.silent_s(job, attempt)
        if begun and silent == 0 and not self.wants_a_look(job, attempt):
            return False
        try:
            self._check_container(job, attempt, begun=begun, lost=silent >= watch.lost_after_s, silent=silent)
        except CANNOT_ASK as error:
            job.say(attempt, f"{self.name} cannot be asked: {error}")
            if begun and silent >= watch.lost_after_s:
                message = f"no heartbeat of the runner for {silent:.0f} s, and {self.name} cannot be asked: {error}"
                self._declare(job, attempt, FailureClass.LOST, message)
        return True

    def _check_container(self, job: JobDir, attempt: int, *, begun: bool, lost: bool, silent: float) -> None:
        """Check the container of an attempt whose heartbeat does not move, and record the attempt's end if it has ended."""
        container = self.runtime.look(job, attempt)
        reason = job.cancel_requested()
        name = self.runtime.name(job, attempt)
        if container is None:
            if reason is not None and not begun:
                self._declare(job, attempt, FailureClass.INTERRUPTED, f"cancelled: {reason}", cancelled=True)
            elif self._for(job, attempt, "gone") >= self.files_s:
                self._declare(job, attempt, FailureClass.LOST, f"{name} is gone: it was removed, or its host was drained or is lost")
            return
        if reason is not None and container.stage.alive and not container.leaving and not lost:
            self._take_back(job, attempt, reason)
        elif container.stage is ContainerStage.ENDED:
            if container.exit_code not in _OUTCOME_WRITTEN or self._for(job, attempt, "ended") >= self.files_s:
                self._end(job, attempt, container, container.message)
        elif container.stage is ContainerStage.DOOMED:
            self._end(job, attempt, container, f"{name} cannot start: {container.message}")
        elif not begun:
            job.say(attempt, container.message or "its runner starts")
            limit = self.schedule_timeout_s if container.stage is ContainerStage.UNSCHEDULED else self.start_timeout_s
            if limit and (waited := self._for(job, attempt, str(container.stage))) >= limit:
                hint = "; does it see the job's folder under the same path?" if container.stage is ContainerStage.RUNNING else ""
                self._end(
                    job,
                    attempt,
                    container,
                    f"no runner after {waited:.0f} s in {name}, which is {container.stage}: {container.message}{hint}",
                )
        elif lost:
            trouble = f"{container.where}: {container.message}".strip(": ") or "which runs"
            self._end(job, attempt, container, f"no heartbeat of the runner for {silent:.0f} s in {name}, {trouble}")

    def _end(self, job: JobDir, attempt: int, container: ContainerStatus, message: str) -> None:
        """Record an attempt's end as the container reports it, then remove the container."""
        details = {"container": dict(container.facts)}
        if self._declare(job, attempt, container.failure_class, message, exit_code=container.exit_code, details=details):
            self._finished.add((str(job.path), attempt))  # a disconnected host may never report the end
        elif container.stage is ContainerStage.ENDED:
            job.note_container(attempt, container.facts)
        if not (self.keep and container.stage is ContainerStage.ENDED):
            self.runtime.remove(job, attempt)

    def _declare(self, job: JobDir, attempt: int, failure_class: FailureClass, message: str, **more: Any) -> bool:
        """See :meth:`Backend`. A cancel explains an end without an outcome."""
        reason = job.cancel_requested()
        if reason is not None and failure_class is FailureClass.LOST:
            failure_class, message, more = FailureClass.INTERRUPTED, f"cancelled: {reason} ({message})", {**more, "cancelled": True}
        return super()._declare(job, attempt, failure_class, message, **more)

    def _take_back(self, job: JobDir, attempt: int, reason: str) -> None:
        """Stop the container of a cancelled attempt, with time to save. An attempt without a runner ends with this."""
        state = job.state()
        if attempt == 0 or state.phase.final:
            return
        self.runtime.stop(job, attempt, grace_s=job.spec().resources.grace_s)
        if not state.pid:
            # A runner that starts at this moment sees that its attempt is over, and ends.
            self._declare(job, attempt, FailureClass.INTERRUPTED, f"cancelled: {reason}", cancelled=True)

    def _finish(self, job: JobDir, status: JobStatus) -> JobStatus:
        """Record what the container reports and remove it. The job is over when the exit code is known."""
        key = (str(job.path), status.attempt)
        if key in self._finished:
            return status
        waited = self._for(job, status.attempt, "finishing")
        try:
            container = self.runtime.look(job, status.attempt)
            if container is not None:
                if container.stage.alive and waited < self.finish_s:
                    return JobStatus(attempt=status.attempt, phase=Phase.RUNNING, message="its container is ending")
                job.note_container(status.attempt, container.facts)
                if not self.keep:
                    self.runtime.remove(job, status.attempt)
        except CANNOT_ASK as error:
            if isinstance(error, Unreachable) and waited < self.finish_s:
                return JobStatus(attempt=status.attempt, phase=Phase.RUNNING, message=str(error))
            # the outcome counts; an unknown exit code must not keep the job from ending
            log.warning("%s is left behind: %s", self.runtime.name(job, status.attempt), error)
        self._finished.add(key)
        record_ended_attempts(job)  # the runner sees only its job's folder
        return read_status(job)

    def _for(self, job: JobDir, attempt: int, what: str) -> float:
        """Return the seconds since this watcher first saw ``what``, by its monotonic clock."""
        now = time.monotonic()
        return now - self._since.setdefault((str(job.path), attempt, what), now)

    def _make_folders(self, job: JobDir, spec: JobSpec) -> None:
        """Create the folders to mount, for the job's user, because the runtime would create missing ones for root."""
        uid, gid = self.user(job)
        for mount in (*mounts_for(spec), *self.own_mounts(spec)):
            path = Path(mount.path)
            if mount.mode is Mode.HIDDEN or path.exists():
                continue
            try:
                make_root(spec.workspace, path if mount.field != "private" else path.parent)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir(exist_ok=True, mode=PRIVATE | 0o100 if mount.field == "private" else 0o777)
                give_to(path, uid, gid)
            except OSError as error:
                raise ConfigError(
                    where="[nnunet]", field=mount.field, problem=f"{path} is missing and cannot be created: {error.strerror}"
                ) from error
        for path in (job.path, *job.path.iterdir()):
            give_to(path, uid, gid)


def _beats(job: JobDir) -> bool:
    """Return whether the runner's heartbeat moves within a few seconds."""
    before, until = job.beat(), time.monotonic() + _BEAT_S
    while job.beat() == before and time.monotonic() < until:
        time.sleep(0.1)
    return job.beat() != before
