"""Measures and records what an attempt uses, with separate times for waiting and computing, by the runner's own monotonic clock."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import replace
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, Failure
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.job.usage import Usage, append_usage, outcome_of, read_attempt_usage, utc, write_attempt_usage
from nnunet_jobs.contract.storage.workspace import dataset_name
from nnunet_jobs.devices.gpu import Placement

log = logging.getLogger("nnunet_jobs")


class UsageMeter:
    """Records what one attempt uses: waiting time, computing time, share of its GPUs.

    Errors of the record are logged and never fail the job; the process that sees the job's end records what is missing.
    """

    def __init__(self, job: JobDir, attempt: int) -> None:
        self.job = job
        self.attempt = attempt
        self._usage: Usage | None = None
        self._since = time.monotonic()

    def wait(self, spec: JobSpec) -> None:
        """Record that the attempt begins to wait for its device, or continues to wait in another process (see handover.py)."""
        now = utc(time.time())
        before = self._noted()
        self._since = time.monotonic()
        self._usage = Usage(
            job=self.job.job_id,
            attempt=self.attempt,
            step=spec.step,
            dataset=dataset_of(spec),
            team=spec.team,
            user=spec.labels.get("triggered_by") or spec.labels.get("owner", ""),
            host=socket.gethostname(),
            started=before.started if before else now,
            ended=now,
            waited_s=before.waited_s if before else 0.0,
        )
        self._keep(self._usage)

    def compute(self, placement: Placement, *, gpu_share: float, cpus: int) -> None:
        """Record that the attempt has its device."""
        if self._usage is not None:
            self._usage = replace(
                self._usage,
                device=placement.device,
                gpus=placement.gpus,
                gpu_share=round(gpu_share, 4),
                slot=placement.device == "cpu" and placement.lease is not None,
                cpus=cpus,
                waited_s=round(self._usage.waited_s + self._lap(), 3),
            )
            self._keep(self._usage)

    def hand_over(self) -> None:
        """Leave the attempt and its record to another process."""
        if self._usage is not None:
            self._keep(replace(self._usage, waited_s=round(self._usage.waited_s + self._lap(), 3)))

    def end(self, outcome: Failure | str | None) -> dict[str, Any]:
        """Record the end of the attempt: a failure, another reason, or success. Returns the usage for the result or failure."""
        usage = self._usage
        if usage is None:
            return {}
        seconds = self._lap()
        spent: Any = {"computed_s": seconds} if usage.device else {"waited_s": round(usage.waited_s + seconds, 3)}
        word = outcome if isinstance(outcome, str) else outcome_of(outcome)
        usage = replace(usage, ended=utc(time.time()), outcome=word, **spent)
        try:
            append_usage(self.job, usage)
        except OSError as error:
            log.error("what this attempt used cannot be recorded here: %s", error)
        return {"waited_s": usage.waited_s, "computed_s": usage.computed_s, "gpu_share": usage.gpu_share}

    def _lap(self) -> float:
        before, self._since = self._since, time.monotonic()
        return round(self._since - before, 3)

    def _noted(self) -> Usage | None:
        try:
            return read_attempt_usage(self.job, self.attempt)
        except OSError as error:
            log.error("what this attempt has used so far cannot be read: %s", error)
            return None

    def _keep(self, usage: Usage) -> None:
        try:
            write_attempt_usage(self.job, usage)
        except OSError as error:
            log.error("what this attempt uses cannot be recorded: %s", error)


def dataset_of(spec: JobSpec) -> str:
    """Return the full names of a job's datasets, as far as they are known."""
    params = spec.params
    try:
        if "dataset_id" in params:
            return dataset_name(int(params["dataset_id"]), str(params["name"]))
        named = params.get("datasets") or [params.get("dataset", "")]
        return ",".join(spec.workspace.resolve_dataset(dataset) for dataset in named)
    except (ConfigError, OSError):  # not registered, or not visible here; the step itself reports it
        return ",".join(str(name) for name in params.get("datasets") or [params.get("dataset", params.get("name", ""))])
