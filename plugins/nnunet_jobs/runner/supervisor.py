"""Starts a step's process, watches its progress and memory, ends it when it must, and leaves none of its processes behind."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from nnunet_jobs import processes
from nnunet_jobs.contract.failure import FailureClass, Interrupted
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.liveness import read_counter
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.job.state import Fenced
from nnunet_jobs.devices.gpu import Placement
from nnunet_jobs.devices.leases import Ledger
from nnunet_jobs.patience import OutageLog, patiently
from nnunet_jobs.runner import attempt_limits
from nnunet_jobs.runner.child import GRANT_VARIABLE, outcome_path
from nnunet_jobs.runner.hang_watch import HangWatch
from nnunet_jobs.runner.heartbeat import Cancelled, Heartbeat

log = logging.getLogger("nnunet_jobs")

_HANG_GRACE_S = 10.0
_LEAVE_S = 30.0  # seconds from the step's outcome to its process's end, for interpreters that do not finish
_MEASURE_S = 10.0  # seconds between two measurements of memory when there is no limit
_NEVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why the runner ends a step before its time."""

    failure_class: FailureClass
    message: str
    grace_s: float
    cancelled: bool = False


class Supervisor:
    """Supervises the step process of an attempt. ``module`` is the program with the ``step`` command.

    After :meth:`run`, ``stop`` says why the step was ended, if it was; ``peak_mib`` is the most memory that its processes used together.
    """

    def __init__(self, heartbeat: Heartbeat, spec: JobSpec, *, module: str) -> None:
        self.heartbeat = heartbeat
        self.job: JobDir = heartbeat.job
        self.spec = spec
        self.module = module
        self.stop: Stop | None = None
        self.peak_mib = 0
        self._upper_mib = 0
        self._next_measure = 0.0

    def run(self, placement: Placement, cpus: int) -> int:
        """Run the step to its end. Returns its exit code, minus the signal if one ended it. Needs :func:`processes.adopt_orphans`."""
        watch = HangWatch(self.spec.resources.hang_s)
        offset = patiently(self._metrics_size, what="the job's metrics", meanwhile=self.heartbeat.check)
        outcome = outcome_path(self.job, self.heartbeat.attempt)
        pid = self._start(placement, cpus)
        kill_at = leave_at = _NEVER
        outage = OutageLog("the job directory")
        try:
            while (code := processes.exit_code(pid)) is None:
                self.heartbeat.sleep()
                self.heartbeat.beat()
                hangs = False
                try:
                    os.stat(self.job.path)  # a missing counter would look like one that does not change
                    records, offset = self.job.read_metrics(offset)
                    hangs = watch.look(read_counter(self.job.progress), records)
                    if leave_at == _NEVER and outcome.exists():
                        leave_at = time.monotonic() + _LEAVE_S
                except OSError as error:
                    # A shared file system may be unavailable for a moment; that must not end a training.
                    outage.failed(error)
                else:
                    outage.answered()
                if self.stop is None:
                    self.stop = self._reason_to_stop(watch if hangs else None)
                    if self.stop is not None:
                        log.warning("stopping the step: %s", self.stop.message)
                        _ask_to_stop(pid, self.stop)
                        kill_at = time.monotonic() + self.stop.grace_s
                if time.monotonic() >= min(kill_at, leave_at):
                    log.warning("killing the step's processes")
                    os.killpg(pid, signal.SIGKILL)
                    kill_at = leave_at = _NEVER
        finally:
            left = processes.kill_descendants(beat=self.heartbeat.beat)
            if left:
                log.info("ended %d process(es) that the step had left", left)
            # Short steps end between two measurements; the kernel remembers the largest single process.
            self.peak_mib = max(self.peak_mib, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
        return code

    def _metrics_size(self) -> int:
        try:
            return self.job.metrics.stat().st_size
        except FileNotFoundError:
            self.job.state()  # raises if more than the metrics is missing
            return 0

    def _start(self, placement: Placement, cpus: int) -> int:
        grant = {
            "device": placement.device,
            "gpus": placement.gpus,
            "cpus": cpus,
            "memory_mib": self.spec.resources.memory_mib,
            "grace_s": self.spec.resources.grace_s,
            "runner": os.getpid(),
        }
        environment = attempt_limits.environment(cpus=cpus, device=placement.device, gpus=placement.gpus, step=self.spec.step)
        with patiently(lambda: open(self.job.log, "ab"), what="the job's log", meanwhile=self.heartbeat.check) as output:
            process = subprocess.Popen(
                [sys.executable, "-m", self.module, "step", str(self.job.path), "--attempt", str(self.heartbeat.attempt)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=placement.lease.fds if placement.lease else (),
                env={**os.environ, **environment, GRANT_VARIABLE: json.dumps(grant)},
            )
        process.returncode = 0  # collected by pid, among the orphans that we adopt
        if placement.lease and placement.gpus:
            try:
                Ledger(self.spec.workspace.leases).note_session(placement.lease, process.pid)
            except OSError as error:  # its processes may then count as foreign, which only reduces the GPU memory for other jobs
                log.error("the step's session cannot be noted in the lease ledger: %s", error)
        return process.pid

    def _reason_to_stop(self, hung: HangWatch | None) -> Stop | None:
        grace = self.spec.resources.grace_s
        try:
            self.heartbeat.check()
        except Fenced as error:
            return Stop(failure_class=FailureClass.LOST, message=str(error), grace_s=grace)
        except Interrupted as error:
            return Stop(failure_class=FailureClass.INTERRUPTED, message=str(error), grace_s=grace, cancelled=isinstance(error, Cancelled))
        limit = self.spec.resources.memory_mib
        if self._exceeds(limit):
            message = f"memory_mib={limit}: the step's processes use {self.peak_mib} MiB; allow more, or fewer processes"
            return Stop(failure_class=FailureClass.HOST_OOM, message=message, grace_s=0.0)
        if hung is not None:
            message = f"no sign of progress for {hung.silent_s:.0f} s (limit {hung.limit_s:.0f} s); the log has the stacks of all threads"
            return Stop(failure_class=FailureClass.HANG, message=message, grace_s=min(grace, _HANG_GRACE_S))
        return None

    def _exceeds(self, limit_mib: int | None) -> bool:
        """Update the peak; return True above the limit.

        The resident memory of all processes together is measured. RLIMIT_AS and RLIMIT_DATA are not used: they count single
        processes, and CUDA reserves hundreds of GiB of addresses that it never uses. The exact sum is expensive (the kernel
        walks page tables), so it is computed only when the cheap upper bound rises.
        """
        if limit_mib is None and time.monotonic() < self._next_measure:
            return False
        self._next_measure = time.monotonic() + _MEASURE_S
        pids = processes.descendants(os.getpid())
        upper = processes.upper_memory_mib(pids)
        above = limit_mib is not None and upper > limit_mib
        if upper <= self._upper_mib * 1.05 and not above:
            return False
        self._upper_mib = max(upper, self._upper_mib)
        exact = processes.exact_memory_mib(pids)
        self.peak_mib = max(self.peak_mib, exact)
        return limit_mib is not None and exact > limit_mib


def _ask_to_stop(pid: int, stop: Stop) -> None:
    """Send SIGTERM to the step alone, since its workers help it to save; continue it if it is suspended."""
    with contextlib.suppress(ProcessLookupError):
        if stop.failure_class is FailureClass.HANG:
            os.kill(pid, signal.SIGUSR1)  # stacks of all threads go to the log
        os.kill(pid, signal.SIGTERM)
        os.killpg(pid, signal.SIGCONT)
