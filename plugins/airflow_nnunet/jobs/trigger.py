"""The trigger of all operators, which watches a job's directory while the task is deferred and holds no worker slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_nnunet.backends import Backend, JobStatus, Watch, get_backend
from airflow_nnunet.jobs.log import LogLine, LogLines, new_lines, write_lines
from airflow_nnunet.jobs.outage import JobFolderGone, Outage, deliver
from airflow_nnunet.jobs.progress import ProgressLines
from airflow_nnunet.jobs.stored_arguments import StoredArguments
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.state import Phase


class JobTrigger(StoredArguments, BaseTrigger):
    """Waits until an attempt of a job is over, shows its progress in the task's log, and cancels it if a user says so.

    Nothing is lost when a triggerer ends: all state is in the job's directory, and the next triggerer reads it again.
    While the storage does not answer, the trigger waits, and the job continues.

    Args:
        job: Path of the job directory, on storage that this host sees.
        backend: Name of the backend, which knows whether the job still runs.
        backend_options: Options of that backend.
        poll_interval: Seconds between two checks.
        lost_after: Seconds without a heartbeat after which the attempt counts as lost.
        metrics_offset: Byte of ``metrics.jsonl`` from which progress is new.
        log_offset: Byte of the job's log from which it is shown in the task's log; None shows nothing of it.
        hold_s: Seconds after its start during which it reports no end. Airflow's scheduler marks a task as failed that
            returns before the scheduler knows about the deferral (apache/airflow 72716).
    """

    def __init__(
        self,
        *,
        job: str,
        backend: str = "local",
        backend_options: Mapping[str, Any] | None = None,
        poll_interval: float = 2.0,
        lost_after: float = 120.0,
        metrics_offset: int = 0,
        log_offset: int | None = None,
        hold_s: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job = job
        self.backend = backend
        self.backend_options = dict(backend_options or {})
        self.poll_interval = poll_interval
        self.lost_after = lost_after
        self.metrics_offset = metrics_offset
        self.log_offset = log_offset
        self.hold_s = hold_s

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Send one event with the job's path and last phase when the attempt is over or lost, or its folder was removed."""
        job = JobDir(self.job)
        backend = get_backend(self.backend, **self.backend_options)
        watch = Watch(lost_after_s=self.lost_after)
        outage = Outage(job, self.log, lost_after_s=self.lost_after)
        readers: list[ProgressLines | LogLines] = [ProgressLines(job, offset=self.metrics_offset)]
        if self.log_offset is not None:
            readers.append(LogLines(job, offset=self.log_offset))
        held_until = time.monotonic() + self.hold_s
        end: dict[str, Any] | None = None
        while end is None:
            try:
                # Shared storage may hang for a while. In a thread this does not delay other triggers.
                status, lines = await asyncio.to_thread(_look, backend, job, watch, readers)
            except OSError as error:
                watch.forgive()
                try:
                    await asyncio.to_thread(outage.began, error)
                except JobFolderGone as removed:
                    self.log.error("%s", removed)
                    end = {"job": self.job, "attempt": 0, "phase": str(Phase.FAILED)}
            else:
                outage.ended()
                write_lines(self.log, lines)
                if status.final:
                    end = {"job": self.job, "attempt": status.attempt, "phase": str(status.phase)}
            if end is None:
                await asyncio.sleep(self.poll_interval)
        await asyncio.sleep(max(0.0, held_until - time.monotonic()))
        yield TriggerEvent(end)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Cancel the job: a user marked the task failed or successful, or cleared it."""
        if await self._still_deferred():
            # This is not a user's act. With several triggerers, one that was disconnected and returns loses its
            # triggers too.
            self.log.warning("this triggerer lost the task to another one; the job goes on")
            return
        backend = get_backend(self.backend, **self.backend_options)
        cancel = partial(backend.cancel, JobDir(self.job), "the task was marked or cleared by a user")
        await asyncio.to_thread(deliver, cancel, lambda: self.log)
        self.log.info("the job was asked to save its work and to stop")

    async def _still_deferred(self) -> bool:
        """Return whether Airflow still has the task as deferred, or False if this is unknown."""
        ti = self.task_instance
        if ti is None:
            return False
        from airflow_nnunet.jobs.task_state import task_state

        try:
            state = await asyncio.to_thread(task_state, ti)
        except Exception as error:
            self.log.warning("cannot ask for the task's state: %s", error)
            return False
        return state == "deferred"


def _look(backend: Backend, job: JobDir, watch: Watch, readers: Sequence[ProgressLines | LogLines]) -> tuple[JobStatus, list[LogLine]]:
    """Read a job's status and its new lines from the storage."""
    status = backend.status(job, watch)
    return status, new_lines(readers, final=status.final)
