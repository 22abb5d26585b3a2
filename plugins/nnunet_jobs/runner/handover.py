"""Hands a lease over: one process waits for devices, and another one, started with exactly these devices, adopts them.

A container gets its GPUs when it is made, so another process must have leased them before. That is the grantor: the attempt's runner
while it waits, in a container that sees all GPUs but cannot compute on them. Its ``grant.json`` says which GPUs the attempt's own
container gets. The runner in that container writes leases that follow the grantor's; the grantor sees them in the ledger and ends.

    grantor    runner.lock, leases, grant.json ............. sees the followers, ends
    adopter                     adopter.lock, followers, adopted.json, runner.lock, runs

Either process may end at any time. A lease ends with its process, so no device stays taken; during the handover both hold one, so the
device is never free; an adopter whose grantor is dead asks the ledger again; a watcher declares an attempt without a runner lost.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator

from nnunet_jobs.contract.failure import ConfigError, GpuLost, Interrupted, Lost
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.grant import Grant, offer_grant, read_grant, take_grant, was_granted, withdraw_grant
from nnunet_jobs.contract.job.state import Fenced
from nnunet_jobs.contract.storage.files import locked
from nnunet_jobs.contract.storage.permissions import apply_permissions
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices import gpu
from nnunet_jobs.devices.gpu import Placement
from nnunet_jobs.devices.lease import Lease
from nnunet_jobs.devices.leases import Ledger
from nnunet_jobs.devices.nvml import read_inventory
from nnunet_jobs.runner import attempt_limits
from nnunet_jobs.runner.attempt import Attempt, NotThisRunner
from nnunet_jobs.runner.heartbeat import Heartbeat

log = logging.getLogger("nnunet_jobs")

HANDOVER_S = 600.0
"""Seconds that a lease waits to be adopted: enough for a backend's restart and the pull of a large image."""

_LOOK_S = 0.1


class Grantor:
    """Takes the lease of an attempt and holds it until the attempt's own runner has adopted it, at most ``handover_s`` seconds."""

    def __init__(self, job: JobDir, attempt: int, *, handover_s: float = HANDOVER_S) -> None:
        self.job = job
        self.attempt = Attempt(job, attempt)
        self.handover_s = handover_s

    def run(self) -> int:
        """Wait for devices, grant them, and hand them over. Returns 0 after the handover; a failure is in the job directory."""
        return self.attempt.run(self._grant)

    def _grant(self) -> None:
        if was_granted(self.job, self.attempt.number):
            raise NotThisRunner(
                f"attempt {self.attempt.number} of {self.job.job_id} has had its grant; one container asks for one attempt's lease"
            )
        spec = self.job.spec()
        apply_permissions(spec.workspace)
        if spec.resources.gpus == 0:
            raise ConfigError(
                field="gpus", value=0, problem="this job needs no lease", fix="start it with the command run, without --grant"
            )
        limits = attempt_limits.limits_after(self.job.earlier_failures(), spec.resources)
        log.info("attempt %d of %s (%s) asks for a lease", self.attempt.number, self.job.job_id, spec.step)
        self.attempt.usage.wait(spec)
        placement = gpu.acquire(
            limits.resources,
            spec.workspace,
            owner=self.job.job_id,
            team=spec.team,
            exclude=limits.exclude,
            poll=self._check,
            waiting=self.attempt.waiting,
        )
        lease = placement.lease
        if lease is None:
            raise RuntimeError(f"no lease for gpus={spec.resources.gpus}")
        try:
            self._hand_over(placement, lease, Ledger(spec.workspace.leases))
        finally:
            lease.release()

    def _hand_over(self, placement: Placement, lease: Lease, ledger: Ledger) -> None:
        grant = Grant(
            attempt=self.attempt.number,
            device=placement.device,
            gpus=placement.gpus,
            devices=lease.devices,
            leases=lease.numbers,
            memory_mib=placement.memory_mib,
            slots=placement.slots,
            host=socket.gethostname(),
        )
        what = ", ".join(lease.devices)
        until = time.monotonic() + self.handover_s
        offer_grant(self.job, grant)
        try:
            self.attempt.waiting(f"has {what}; waits for its container")
            while not ledger.is_adopted(lease):
                self._check()
                if time.monotonic() > until:
                    raise Lost(
                        f"{what} was leased for {self.handover_s:.0f} s and nobody started the job's container on it; "
                        "is the backend's watcher (the triggerer) running?"
                    )
                time.sleep(_LOOK_S)
        except BaseException:
            # An offer that stays does no harm: an adopter finds that the lease is gone and the attempt has ended.
            with contextlib.suppress(Fenced, OSError):
                withdraw_grant(self.job, self.attempt.number)
            raise
        log.info("%s was handed over", what)

    def _check(self) -> None:
        """Check as the heartbeat does; also raise if a watcher has declared the attempt lost, since its lease will not be adopted.

        This reads the watcher's file and not the phase, which a later message of this process may have replaced.
        """
        self.attempt.heartbeat.check()
        verdict = self.job.failure()
        if verdict is not None and verdict.attempt == self.attempt.number:
            raise Fenced(f"attempt {verdict.attempt} of {self.job.job_id} was declared over; its lease is released")


class Adoption:
    """Adopts the granted devices of an attempt, for the runner that was started with them."""

    def __init__(self, job: JobDir, heartbeat: Heartbeat) -> None:
        self.job = job
        self.heartbeat = heartbeat
        self._placement: Placement | None = None
        self._error: Exception | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Adopt the grant and keep it, at least to the block's end. :meth:`placement` raises errors, so that they are recorded.

        Raises:
            NotThisRunner: No grant is offered to this attempt (any more).
            Fenced: See :meth:`Heartbeat.check_owner`.
            Interrupted: See :meth:`Heartbeat.check_owner`.
        """
        attempt = self.heartbeat.attempt
        with locked(self.job.adopter_lock, poll=self.heartbeat.check_owner, interval=_LOOK_S):
            grant = read_grant(self.job, attempt)
            if grant is None:
                raise NotThisRunner(f"attempt {attempt} of {self.job.job_id} has no grant: not yet, or another runner has adopted it")
            try:
                self._placement = self._adopt(grant)
            except (Fenced, Interrupted):
                raise
            except Exception as error:
                self._error = error
            try:
                if not take_grant(self.job, attempt):
                    raise NotThisRunner(f"attempt {attempt} of {self.job.job_id}: the grant was withdrawn")
                yield
            finally:
                if self._placement is not None and self._placement.lease is not None:
                    self._placement.lease.release()

    def placement(self) -> Placement:
        """Return the adopted devices.

        Raises:
            Lost: The lease has ended, and its devices are not free.
            ConfigError: The lease directory cannot be used in this container.
        """
        if self._placement is None:
            raise self._error or RuntimeError("nothing was adopted")
        return self._placement

    def _adopt(self, grant: Grant) -> Placement:
        workspace = self.job.spec().workspace
        apply_permissions(workspace)
        lease = Ledger(workspace.leases).adopt(grant.leases, grant.devices, owner=self.job.job_id, poll=self.heartbeat.check_owner)
        if lease is None:
            lease = self._anew(grant, workspace)
        gpus = lease.devices if grant.device == "cuda" else ()
        return Placement(device=grant.device, gpus=gpus, lease=lease, slots=grant.slots, memory_mib=grant.memory_mib)

    def _anew(self, grant: Grant, workspace: Workspace) -> Lease:
        what = ", ".join(grant.devices)
        log.warning("the lease of %s ended before it was adopted; asking for it again", what)
        named = {"owner": self.job.job_id, "team": self.job.spec().team}
        lease = gpu.claim(grant.devices, grant.device, workspace, memory_mib=grant.memory_mib, **named)
        if lease is None:
            raise Lost(f"the lease of {what}, taken in {grant.host}, ended before it was adopted, and other jobs have or want it now")
        return lease


def require_visible(gpus: tuple[str, ...]) -> None:
    """Check that the granted GPUs are visible.

    Raises:
        GpuLost: A GPU is not visible; the message has what NVML says instead.
    """
    if not gpus:
        return
    inventory = read_inventory()
    seen = [found.uuid for found in inventory.gpus if not found.lost]
    hidden = [uuid for uuid in gpus if uuid not in seen]
    if hidden:
        raise GpuLost(
            f"GPU {', '.join(hidden)} was leased for this container, which does not see it ({inventory.reason or f'it sees {seen}'}); "
            "check that the engine gives containers the GPUs that are asked for by UUID"
        )
