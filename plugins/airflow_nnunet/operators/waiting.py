"""Waiting for a job without losing it: in the triggerer or in the worker, and what a stop, a user's act or a timeout means for the job."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowRescheduleException, AirflowTaskTimeout

from airflow_nnunet.backends import Backend, Watch, read_status
from airflow_nnunet.jobs.exceptions import JobCancelled
from airflow_nnunet.jobs.log import LogLines, log_size, new_lines, write_lines
from airflow_nnunet.jobs.outage import Outage, deliver, patiently
from airflow_nnunet.jobs.progress import ProgressLines
from airflow_nnunet.jobs.task_state import is_ended, task_state
from airflow_nnunet.jobs.trigger import JobTrigger
from airflow_nnunet.settings.config import NnunetConfig
from nnunet_jobs.contract.job.folder import JobDir

if TYPE_CHECKING:
    from airflow.sdk import Context

_SLICE_S = 0.5
_FOREVER = float("inf")
_SHORTEST_TIMEOUT = timedelta(seconds=1)
# Long enough for the scheduler to have heard from the stopping worker: a task that comes back before that costs a retry.
_COME_BACK_S = 20.0


class WaitingOperator(BaseOperator):  # type: ignore[misc, unused-ignore]
    """An operator that waits for a job. Subclasses say which job it is and what its end means.

    Attributes:
        deferrable: True waits in the triggerer and holds no worker slot; False polls in the worker.
    """

    deferrable: bool
    _stopping: bool
    _log_from: int | None = None
    """Where this try's part of the job's log begins."""

    def on_kill(self) -> None:
        """Note that the worker wants to end this process. The job is not touched here.

        SIGTERM comes both from a user's act and from a worker that is being replaced, with SIGKILL a few seconds later: too short
        for a checkpoint. The waiting loop asks Airflow which of the two it was. The trigger cancels the job of a deferred task.
        """
        # A plain flag: this runs in a signal handler, where taking a lock could wait forever.
        self._stopping = True

    def _wait(self, context: Context, config: NnunetConfig, job: JobDir, *, then: str) -> None:
        """Wait for the end of the attempt: here at first, then in the triggerer (which does not return) if the task is deferrable.

        A job that ends within seconds of a deferral can cost a retry, or the task where there is none: Airflow's scheduler takes the
        worker's end for the task's where the task is back in the queue before the scheduler has heard of it (apache/airflow 72716).
        So short jobs are waited for here, and the trigger reports no end before the scheduler has had time to hear.
        """
        if self._stopping and is_ended(task_state(context["ti"])):
            self._stopped_by_user(config.make_backend(), job)
        readers = patiently(lambda: self._readers(config, job), log=self.log, limit_s=config.lost_after, job=job)
        began = time.monotonic()
        if self._poll(context, config, job, readers, for_s=config.defer_after if self.deferrable else _FOREVER):
            return
        if self._is_ended(context):  # marked meanwhile: Airflow would refuse the deferral, and nobody would stop the job
            self._stopped_by_user(config.make_backend(), job)
        timeout = self.execution_timeout
        if timeout is not None:  # the time here counts too
            timeout = max(_SHORTEST_TIMEOUT, timeout - timedelta(seconds=time.monotonic() - began))
        progress, *rest = readers
        self.defer(
            trigger=JobTrigger(
                job=str(job.path),
                backend=config.backend,
                backend_options=config.backend_options,
                poll_interval=config.poll_interval,
                lost_after=config.lost_after,
                metrics_offset=progress.offset,
                log_offset=rest[0].offset if rest else None,
                hold_s=config.defer_after,
            ),
            method_name=then,
            timeout=timeout,
        )

    def _readers(self, config: NnunetConfig, job: JobDir) -> list[ProgressLines | LogLines]:
        """Readers of progress and of the job's log if it is shown. The triggerer has shown the beginning of a job found again."""
        shown = job.metrics.stat().st_size if self.deferrable and job.metrics.exists() else 0
        readers: list[ProgressLines | LogLines] = [ProgressLines(job, offset=shown)]
        if config.task_log == "full":
            readers.append(LogLines(job, offset=self._log_offset(job)))
        return readers

    def _poll(
        self,
        context: Context,
        config: NnunetConfig,
        job: JobDir,
        readers: Sequence[ProgressLines | LogLines] = (),
        *,
        for_s: float = _FOREVER,
    ) -> bool:
        """Look at a job until it ends, for at most ``for_s`` seconds. Returns whether it has ended."""
        backend = config.make_backend()
        watch = Watch(lost_after_s=config.lost_after)
        give_up = time.monotonic() + for_s
        try:
            outage = Outage(job, self.log, lost_after_s=config.lost_after)
            while True:
                try:
                    status = backend.status(job, watch)
                    lines = new_lines(readers, final=status.final)
                except OSError as error:
                    watch.forgive()
                    outage.began(error)
                else:
                    outage.ended()
                    write_lines(self.log, lines)
                    if status.final:
                        return True
                now = time.monotonic()
                if now >= give_up:
                    return False
                until = min(now + config.poll_interval, give_up)
                while not self._stopping and (left := until - time.monotonic()) > 0:
                    time.sleep(min(left, _SLICE_S))
                if self._stopping:
                    self._stop_waiting(context, backend, job)
        except AirflowTaskTimeout:
            self._cancel(backend, job, "execution timeout")
            raise

    def _is_ended(self, context: Context) -> bool:
        """Whether a user marked the task; False when Airflow cannot be asked, since its listener hears of the mark as well."""
        try:
            return is_ended(task_state(context["ti"]))
        except Exception as error:
            self.log.warning("cannot ask for the task's state: %s", error)
            return False

    def _log_offset(self, job: JobDir) -> int:
        return log_size(job) if self._log_from is None else self._log_from

    def _stop_waiting(self, context: Context, backend: Backend, job: JobDir) -> NoReturn:
        """Tell a user's act from a stopping worker by what Airflow says about the task now."""
        if is_ended(task_state(context["ti"])):
            self._stopped_by_user(backend, job)
        # No retry is spent: the task comes back on another worker and attaches to the job.
        self.log.info("this worker stops; the job goes on and the task will attach to it again")
        raise AirflowRescheduleException(datetime.now(tz=UTC) + timedelta(seconds=_COME_BACK_S))  # type: ignore[no-untyped-call]

    def _stopped_by_user(self, backend: Backend, job: JobDir) -> NoReturn:
        self._cancel(backend, job, "the task was marked or cleared by a user")
        raise JobCancelled(f"interrupted: the task was marked or cleared by a user; job {job.job_id} saves its work and stops")

    def _cancel(self, backend: Backend, job: JobDir, reason: str) -> None:
        def cancel() -> None:
            if not job.path.exists():
                os.stat(job.path.parent)  # raises where it is the storage that is away
            elif not read_status(job).final:
                backend.cancel(job, reason)
                self.log.info("cancelled job %s: %s", job.job_id, reason)

        deliver(cancel, lambda: self.log)
