"""One trigger for all operators: it watches a job's directory while the task is deferred and no worker slot is held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_nnunet.backends import Watch, get_backend
from airflow_nnunet.job_log import LogLines
from airflow_nnunet.progress import ProgressLines
from nnunet_jobs.contract.jobdir import JobDir


class JobTrigger(BaseTrigger):
    """Waits until an attempt of a job is over, shows its progress in the task's log, cancels it when a user says so.

    A triggerer that dies takes nothing with it: the job's directory is the truth, and the next triggerer looks at it again.

    Args:
        job: path of the job directory, on storage that this host sees.
        backend, backend_options: who judges whether the job is alive.
        poll_interval: seconds between two looks.
        lost_after: seconds without a heartbeat after which the attempt counts as lost.
        metrics_offset: byte of ``metrics.jsonl`` from which progress is new.
        log_offset: byte of the job's log from which it streams to the task's log; None shows none of it.
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
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job = job
        self.backend = backend
        self.backend_options = dict(backend_options or {})
        self.poll_interval = poll_interval
        self.lost_after = lost_after
        self.metrics_offset = metrics_offset
        self.log_offset = log_offset

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, all a triggerer needs to go on."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "job": self.job,
                "backend": self.backend,
                "backend_options": self.backend_options,
                "poll_interval": self.poll_interval,
                "lost_after": self.lost_after,
                "metrics_offset": self.metrics_offset,
                "log_offset": self.log_offset,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, with the job's path and last phase, when the attempt is over, lost included."""
        job = JobDir(self.job)
        backend = get_backend(self.backend, **self.backend_options)
        watch = Watch(lost_after_s=self.lost_after)
        readers: list[ProgressLines | LogLines] = [ProgressLines(job, offset=self.metrics_offset)]
        if self.log_offset is not None:
            readers.append(LogLines(job, offset=self.log_offset))
        while True:
            # Shared storage may hang for a while; in a thread it does not hold up the other triggers.
            status = await asyncio.to_thread(backend.status, job, watch)
            for reader in readers:
                for line in await asyncio.to_thread(reader.poll, final=status.final):
                    self.log.info("%s", line)
            if status.final:
                break
            await asyncio.sleep(self.poll_interval)
        yield TriggerEvent({"job": self.job, "attempt": status.attempt, "phase": str(status.phase)})  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Cancel the job: a user marked the task failed or successful, or cleared it."""
        if await self._still_deferred():
            # Not a user's act: with several triggerers, one that was cut off and returns loses its triggers the same way.
            self.log.warning("this triggerer lost the task to another one; the job goes on")
            return
        backend = get_backend(self.backend, **self.backend_options)
        await asyncio.to_thread(backend.cancel, JobDir(self.job), "the task was marked or cleared by a user")
        self.log.info("cancelled the job; it saves its work and stops")

    async def _still_deferred(self) -> bool:
        """Whether Airflow still has the task as deferred; False when that cannot be found out."""
        ti = self.task_instance
        if ti is None:
            return False
        from airflow_nnunet.task_state import task_state

        try:
            state = await asyncio.to_thread(task_state, ti)
        except Exception as error:
            self.log.warning("cannot ask for the task's state: %s", error)
            return False
        return state == "deferred"
