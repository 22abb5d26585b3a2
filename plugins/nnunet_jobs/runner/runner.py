"""Runs an attempt: finds devices for the step, has it supervised, and classifies how it ended."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.permissions import apply_permissions
from nnunet_jobs.devices import gpu, host
from nnunet_jobs.devices.gpu import Placement
from nnunet_jobs.devices.quarantine import Quarantine
from nnunet_jobs.patience import patiently
from nnunet_jobs.runner import attempt_limits, exit_class
from nnunet_jobs.runner.attempt import Attempt
from nnunet_jobs.runner.attempt_limits import AttemptLimits
from nnunet_jobs.runner.child import outcome_path
from nnunet_jobs.runner.handover import Adoption, require_visible
from nnunet_jobs.runner.supervisor import Supervisor

log = logging.getLogger("nnunet_jobs")

FindPlacement = Callable[[JobSpec, AttemptLimits], Placement]


class Runner:
    """Runs one attempt from lease to outcome. ``module`` is the program with the command ``step JOB_DIR --attempt N``.

    ``ready_fd`` is written to once the attempt is recorded.
    """

    def __init__(self, job: JobDir, attempt: int, *, module: str = "nnunet_jobs", ready_fd: int | None = None) -> None:
        self.job = job
        self.module = module
        self.attempt = Attempt(job, attempt, ready_fd=ready_fd)

    def run(self) -> int:
        """Run the attempt on devices that are leased here. Returns the exit code; the outcome is in the job directory."""
        return self.attempt.run(lambda: self._work(self._lease))

    def run_granted(self) -> int:
        """Run the attempt as :meth:`run`, on the devices of ``grant.json``, whose lease is adopted."""
        adoption = Adoption(self.job, self.attempt.heartbeat)

        def find_placement(spec: JobSpec, limits: AttemptLimits) -> Placement:
            placement = adoption.placement()
            self._note(placement, limits)  # first, so that the next attempt avoids a GPU that is not visible
            require_visible(placement.gpus)
            return placement

        return self.attempt.run(lambda: self._work(find_placement), first=adoption.held)

    def _lease(self, spec: JobSpec, limits: AttemptLimits) -> Placement:
        return gpu.acquire(
            limits.resources,
            spec.workspace,
            owner=self.job.job_id,
            team=spec.team,
            exclude=limits.exclude,
            poll=self.attempt.heartbeat.check,
            waiting=self.attempt.waiting,
        )

    def _note(self, placement: Placement, limits: AttemptLimits) -> None:
        self.attempt.details |= {
            "device": placement.device,
            "gpus": list(placement.gpus),
            "cpus": limits.cpus(placement.slots),
        }

    def _work(self, find_placement: FindPlacement) -> dict[str, Any] | Failure:
        number = self.attempt.number
        beat = self.attempt.heartbeat.check
        spec, earlier = patiently(lambda: (self.job.spec(), self.job.earlier_failures()), what="the specification", meanwhile=beat)
        apply_permissions(spec.workspace)
        limits = attempt_limits.limits_after(earlier, spec.resources)
        log.info("attempt %d of %s (%s), runner %d", number, self.job.job_id, spec.step, os.getpid())
        for note in limits.notes:
            log.warning("%s", note)
        self.attempt.usage.wait(spec)
        placement = find_placement(spec, limits)
        try:
            self._note(placement, limits)
            cpus = limits.cpus(placement.slots)
            share_of_gpu = gpu.memory_share(placement.gpus, limits.resources.gpu_memory_mib)
            self.attempt.usage.compute(placement, gpu_share=share_of_gpu, cpus=cpus)
            where = ", ".join(placement.gpus) or f"{cpus} CPU core(s)"
            self.attempt.heartbeat.check()
            self.attempt.set_phase(Phase.RUNNING, f"on {where}")
            log.info("runs on %s", where)
            kills = host.oom_kills()
            supervisor = Supervisor(self.attempt.heartbeat, spec, module=self.module)
            code = supervisor.run(placement, cpus)
        finally:
            if placement.lease:
                placement.lease.release()
        self.attempt.details["peak_memory_mib"] = supervisor.peak_mib
        report = patiently(self._report, what="the step's report", meanwhile=self.attempt.heartbeat.beat)
        if "result" in report:
            return {"result": report["result"]}
        stop = supervisor.stop
        if stop is not None:
            return Failure(failure_class=stop.failure_class, message=stop.message, attempt=number, exit_code=code, cancelled=stop.cancelled)
        reported = Failure.from_json(report["failure"]) if report else None
        failure = exit_class.classify_exit(
            code, reported, attempt=number, oom_before=kills, oom_after=host.oom_kills(), folder=self.job.path
        )
        return self._look_after_gpus(failure, placement.gpus, spec)

    def _report(self) -> dict[str, Any]:
        """Return what the step reported; an empty report if there is none.

        Raises:
            OSError: The storage is unavailable, so nothing is known.
        """
        try:
            report: dict[str, Any] = read_json(outcome_path(self.job, self.attempt.number))
        except FileNotFoundError:
            self.job.state()  # raises if more than the report is missing
            return {}
        return report

    def _look_after_gpus(self, failure: Failure, gpus: tuple[str, ...], spec: JobSpec) -> Failure:
        """Change the failure to GPU_LOST if NVML reports a GPU as lost, and put that GPU in quarantine."""
        for uuid, reason in gpu.lost_gpus(gpus).items():
            Quarantine(spec.workspace.leases).add(uuid, f"NVML: {reason}, during {self.job.job_id}")
            failure = replace(failure, failure_class=FailureClass.GPU_LOST, message=f"GPU {uuid}: {reason}. {failure.message}")
        return failure
