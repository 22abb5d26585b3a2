"""One attempt of a job from lease to outcome: light, patient, and the only one that writes the job's result or failure."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nnunet_jobs import allowance, gpu, host, processes, verdict
from nnunet_jobs.child import describe, outcome_path
from nnunet_jobs.contract.failure import Failure, FailureClass, Interrupted
from nnunet_jobs.contract.files import locked, read_json
from nnunet_jobs.contract.jobdir import Fenced, JobDir, Phase
from nnunet_jobs.contract.sharing import share
from nnunet_jobs.contract.spec import JobSpec
from nnunet_jobs.contract.usage import LOST
from nnunet_jobs.leases import Ledger
from nnunet_jobs.meter import Meter
from nnunet_jobs.pulse import BEAT_S, Cancelled, Pulse
from nnunet_jobs.supervisor import Supervisor

log = logging.getLogger("nnunet_jobs")

EXIT_DONE, EXIT_FAILED, EXIT_FENCED, EXIT_REFUSED = 0, 1, 3, 4
_SAVE_RETRIES = 60


class Runner:
    """Runs one attempt. ``module`` is the program that speaks the ``step JOB_DIR --attempt N`` command.

    ``ready_fd`` is written to once the attempt is on record.
    """

    def __init__(self, job: JobDir, attempt: int, *, module: str = "nnunet_jobs", ready_fd: int | None = None) -> None:
        self.job = job
        self.attempt = attempt
        self.module = module
        self.ready_fd = ready_fd
        self.pulse = Pulse(job, attempt)
        self.meter = Meter(job, attempt)
        self.details: dict[str, Any] = {"peak_memory_mib": 0}

    def run(self) -> int:
        """Run the attempt to its end. Returns the exit code; the outcome is in the job directory."""
        self.pulse.listen()
        processes.adopt_orphans()
        try:
            with locked(self.job.runner_lock, poll=self.pulse.check_owner):
                state = self.job.state()
                if state.attempt != self.attempt or state.phase.final:
                    log.error("attempt %d was not begun or is over (attempt %d is %s)", self.attempt, state.attempt, state.phase)
                    return EXIT_REFUSED
                self.pulse.beat()
                self.job.set_phase(self.attempt, Phase.WAITING, "starting")
                self._tell_ready()
                started = time.monotonic()
                outcome = self._outcome()
                self.details["seconds"] = round(time.monotonic() - started, 3)
                return self._commit(outcome)
        except Fenced as error:
            log.warning("%s", error)
            return EXIT_FENCED
        except Interrupted as error:  # while an earlier attempt's runner was still there
            log.warning("%s", error)
            return EXIT_REFUSED

    def _outcome(self) -> dict[str, Any] | Failure:
        try:
            outcome = self._work()
        except Fenced:
            self.meter.end(LOST)
            raise
        except Exception as error:
            failure = replace(describe(error, attempt=self.attempt), cancelled=isinstance(error, Cancelled))
            log.error("%s: %s", failure.failure_class, failure.message, exc_info=failure.failure_class is FailureClass.BUG)
            outcome = failure
        self.details |= self.meter.end(outcome if isinstance(outcome, Failure) else None)
        return outcome

    def _work(self) -> dict[str, Any] | Failure:
        spec = self.job.spec()
        share(spec.workspace)
        allowed = allowance.after(self.job.earlier_failures(), spec.resources)
        log.info("attempt %d of %s (%s), runner %d", self.attempt, self.job.job_id, spec.step, os.getpid())
        for note in allowed.notes:
            log.warning("%s", note)
        self.meter.wait(spec)
        placement = gpu.acquire(
            allowed.resources,
            spec.workspace,
            owner=self.job.job_id,
            team=spec.team,
            exclude=allowed.exclude,
            poll=self.pulse.check,
            waiting=self._waiting,
        )
        try:
            cpus = allowed.cpus(placement.slots)
            self.details |= {"device": placement.device, "gpus": list(placement.gpus), "cpus": cpus}
            self.meter.compute(placement, gpu_share=gpu.memory_share(placement.gpus, allowed.resources.gpu_memory_mib), cpus=cpus)
            where = ", ".join(placement.gpus) or f"{cpus} CPU core(s)"
            self.pulse.check()
            self.job.set_phase(self.attempt, Phase.RUNNING, f"on {where}")
            log.info("runs on %s", where)
            kills = host.oom_kills()
            supervisor = Supervisor(self.pulse, spec, module=self.module)
            code = supervisor.run(placement, cpus)
        finally:
            if placement.lease:
                placement.lease.release()
        self.details["peak_memory_mib"] = supervisor.peak_mib
        path = outcome_path(self.job, self.attempt)
        report = read_json(path) if path.exists() else {}
        if "result" in report:
            return {"result": report["result"]}
        stop = supervisor.stop
        if stop is not None:
            return Failure(
                failure_class=stop.failure_class, message=stop.message, attempt=self.attempt, exit_code=code, cancelled=stop.cancelled
            )
        reported = Failure.from_json(report["failure"]) if report else None
        failure = verdict.judge(code, reported, attempt=self.attempt, oom_before=kills, oom_after=host.oom_kills(), folder=self.job.path)
        return self._look_after_gpus(failure, placement.gpus, spec)

    def _look_after_gpus(self, failure: Failure, gpus: tuple[str, ...], spec: JobSpec) -> Failure:
        """A failure on a GPU that NVML calls lost is the GPU's; it goes into quarantine."""
        for uuid, reason in gpu.lost_gpus(gpus).items():
            Ledger(spec.workspace.leases).quarantine(uuid, f"NVML: {reason}, during {self.job.job_id}")
            failure = replace(failure, failure_class=FailureClass.GPU_LOST, message=f"GPU {uuid}: {reason}. {failure.message}")
        return failure

    def _commit(self, outcome: Mapping[str, Any] | Failure) -> int:
        """Write the outcome, patiently: a full disk may have room again once the step's own files are gone."""
        if isinstance(outcome, Failure):
            final: dict[str, Any] | Failure = replace(outcome, details={**outcome.details, **self.details})
        else:
            final = {"attempt": self.attempt, **outcome, **self.details}
        for left in reversed(range(_SAVE_RETRIES)):
            try:
                self.job.finish(self.attempt, final)
            except OSError as error:
                log.error("the outcome cannot be written: %s", error)
                if not left:
                    raise
                self.pulse.beat()
                time.sleep(BEAT_S)
            else:
                break
        log.info("attempt %d %s", self.attempt, f"failed: {outcome.failure_class}" if isinstance(outcome, Failure) else "is done")
        return EXIT_FAILED if isinstance(outcome, Failure) else EXIT_DONE

    def _waiting(self, message: str) -> None:
        log.info("%s", message)
        self.job.set_phase(self.attempt, Phase.WAITING, message)

    def _tell_ready(self) -> None:
        if self.ready_fd is not None:
            os.write(self.ready_fd, b"ready")
            os.close(self.ready_fd)
            self.ready_fd = None
