"""Waits for a job in the triggerer or in the worker, and handles a stopping worker, a user's act, and a timeout."""

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
# The scheduler needs this time to notice the stopping worker. A task that returns earlier costs a retry.
_COME_BACK_S = 20.0


class WaitingOperator(BaseOperator):  # type: ignore[misc, unused-ignore]
    """An operator that waits for a job. Subclasses define the job and handle its end.

    Attributes:
        deferrable: True waits in the triggerer and holds no worker slot; False polls in the worker.
    """

    deferrable: bool
    _stopping: bool
    _log_from: int | None = None
    """Byte at which this try's part of the job's log begins."""

    def on_kill(self) -> None:
        """Note that the worker wants to end this process. The job is not touched here.

        SIGTERM is sent after a user's act and also when a worker is replaced. SIGKILL follows a few seconds later, too
        early for a checkpoint. The waiting loop asks Airflow which of the two it was. The trigger cancels the job of a
        deferred task.
        """
        # This is a plain flag, because taking a lock in a signal handler could wait forever.
        self._stopping = True

    def _wait(self, context: Context, config: NnunetConfig, job: JobDir, *, then: str) -> None:
        """Wait for the end of the attempt, first here, then in the triggerer (which does not return) if the task is
        deferrable.

        If a task is back in the queue before the scheduler knows about its deferral, the scheduler counts the end of
        the worker process as a failure of the task (apache/airflow 72716). So short jobs are waited for here, and the
        trigger does not report an end too early.
        """
        if self._stopping and is_ended(task_state(context["ti"])):
            self._stopped_by_user(config.make_backend(), job)
        readers = patiently(lambda: self._readers(config, job), log=self.log, limit_s=config.lost_after, job=job)
        began = time.monotonic()
        if self._poll(context, config, job, readers, for_s=config.defer_after if self.deferrable else _FOREVER):
            return
        if self._is_ended(context):  # Airflow would refuse the deferral, and nothing would stop the job
            self._stopped_by_user(config.make_backend(), job)
        timeout = self.execution_timeout
        if timeout is not None:  # the time spent here counts
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
        """Return readers of progress and, if it is shown, of the log. They skip what an earlier try has shown."""
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
        """Check a job until it ends, for at most ``for_s`` seconds. Returns whether it has ended."""
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
        """Return whether a user marked the task, or False if Airflow does not answer. The listener notices a mark too."""
        try:
            return is_ended(task_state(context["ti"]))
        except Exception as error:
            self.log.warning("cannot ask for the task's state: %s", error)
            return False

    def _log_offset(self, job: JobDir) -> int:
        return log_size(job) if self._log_from is None else self._log_from

    def _stop_waiting(self, context: Context, backend: Backend, job: JobDir) -> NoReturn:
        """Ask Airflow for the task's state to tell a user's act from a stopping worker, then stop waiting."""
        if is_ended(task_state(context["ti"])):
            self._stopped_by_user(backend, job)
        # This costs no retry. The task continues on another worker and attaches to the job.
        self.log.info("this worker stops; the job goes on and the task will attach to it again")
        raise AirflowRescheduleException(datetime.now(tz=UTC) + timedelta(seconds=_COME_BACK_S))  # type: ignore[no-untyped-call]

    def _stopped_by_user(self, backend: Backend, job: JobDir) -> NoReturn:
        self._cancel(backend, job, "the task was marked or cleared by a user")
        raise JobCancelled(f"interrupted: the task was marked or cleared by a user; job {job.job_id} saves its work and stops")

    def _cancel(self, backend: Backend, job: JobDir, reason: str) -> None:
        def cancel() -> None:
            if not job.path.exists():
                os.stat(job.path.parent)  # raises an error if the storage does not answer
            elif not read_status(job).final:
                backend.cancel(job, reason)
                self.log.info("cancelled job %s: %s", job.job_id, reason)

        deliver(cancel, lambda: self.log)
