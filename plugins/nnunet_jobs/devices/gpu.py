"""Finds where a job computes: on GPUs leased by NVML and the ledger, or in a CPU slot by the same code if there is no GPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nnunet_jobs.contract.failure import ConfigError, GpuLost
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices.allocator import Device, Request
from nnunet_jobs.devices.lease import Holder, Lease
from nnunet_jobs.devices.leases import Ledger
from nnunet_jobs.devices.nvml import Gpu, GpuProcess, Inventory, read_inventory, torch_is_cpu_only
from nnunet_jobs.devices.quarantine import Quarantine
from nnunet_jobs.patience import patiently
from nnunet_jobs.processes import INITIAL_PID_NAMESPACE, ancestors, pid_namespace, session_of

log = logging.getLogger("nnunet_jobs")

_POLL_S = 0.5
_NVML_S = 5.0  # seconds between two queries of NVML, which takes a second to start if no daemon keeps the driver loaded
_WHOLE_GPU_SLACK_MIB = 1024  # a display server or a monitoring agent may keep this much of a GPU that is leased as a whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The devices of a step. ``gpus`` are UUIDs, ``memory_mib`` is reserved on each; without a lease the step only needs cores."""

    device: str
    gpus: tuple[str, ...] = ()
    lease: Lease | None = None
    slots: int = 1
    memory_mib: int | None = None


def choose_kind(resources: Resources, inventory: Inventory) -> str:
    """Choose ``cuda`` or ``cpu`` for this host.

    Raises:
        ConfigError: GPUs were requested and there are none, or not enough.
    """
    if resources.device == "cuda" and resources.gpus == 0:
        raise ConfigError("device='cuda' with gpus=0: ask for gpus=1, or device='auto'")
    if resources.device == "cpu" or resources.gpus == 0:
        return "cpu"
    usable = _for_one_job(inventory, resources.gpus).gpus
    cpu_torch = torch_is_cpu_only()
    if resources.device == "cuda" and not inventory.gpus:
        raise ConfigError(
            field="device",
            value="cuda",
            problem=f"this host offers no GPU: {inventory.reason}",
            fix=("install the NVIDIA driver and the extra 'local', give the container its GPUs, or use device='auto' or 'cpu'"),
        )
    if resources.device == "cuda" and cpu_torch:
        raise ConfigError(
            field="device",
            value="cuda",
            problem="the installed torch is a CPU build",
            fix="install a CUDA build of torch and torchvision together",
        )
    if not inventory.gpus or cpu_torch:
        log.info("CPU mode: %s", inventory.reason or "the installed torch is a CPU build")
        return "cpu"
    if resources.gpus > (known := len(usable)):
        cut = len(inventory.gpus) - known
        also = f" that one job can have together, and {cut} MIG device(s), of which it can have one" if cut else ""
        raise ConfigError(field="gpus", value=resources.gpus, problem=f"this host has {known}{also}", fix=f"ask for at most {known or 1}")
    largest = sorted((gpu.total_mib for gpu in usable if not gpu.lost), reverse=True)
    if resources.gpu_memory_mib and largest and resources.gpu_memory_mib > largest[min(resources.gpus, len(largest)) - 1]:
        raise ConfigError(
            field="gpu_memory_mib", value=resources.gpu_memory_mib, problem=f"the GPUs of this host have {largest} MiB", fix="ask for less"
        )
    return "cuda"


def _for_one_job(inventory: Inventory, count: int) -> Inventory:
    """Return the GPUs for a job that needs ``count``: CUDA shows a process at most one MIG device (NVIDIA's MIG user guide)."""
    return replace(inventory, gpus=tuple(gpu for gpu in inventory.gpus if count == 1 or gpu.parent is None))


def strangers(gpu: Gpu, holders: list[Holder]) -> list[GpuProcess]:
    """Return the processes on a GPU that belong to no lease (foreign processes).

    A process belongs to a lease if its session is recorded there or the lease's runner is among its ancestors; on the host, also if
    it runs in a lease holder's container (only root and the holder's user can see this; for others it is foreign and counts twice).

    Inside a container, pids are of another namespace, so processes on a GPU with lease holders cannot be distinguished: none counts
    as foreign there, and :func:`as_devices` uses memory alone. On a GPU without holders, every process is foreign.
    """
    own = pid_namespace()
    if holders and own != INITIAL_PID_NAMESPACE:
        return []
    here = [holder for holder in holders if holder.pid_namespace == own]
    sessions = {session for holder in here for session in holder.sessions}
    runners = {holder.pid for holder in here}
    containers = {holder.pid_namespace for holder in holders} - {own, None}
    return [
        process
        for process in gpu.processes
        if session_of(process.pid) not in sessions
        and not runners & {process.pid, *ancestors(process.pid)}
        and pid_namespace(process.pid) not in containers
    ]


def as_devices(inventory: Inventory, ledger: Ledger, *, warn: Callable[[str], None]) -> list[Device]:
    """Return GPUs that can be leased now, less what foreign processes use. Lost GPUs are put in quarantine and left out."""
    holders = ledger.holders()
    quarantine = Quarantine(ledger.folder)
    excluded = quarantine.devices()
    devices = []
    for gpu in inventory.gpus:
        if gpu.lost:
            if gpu.uuid not in excluded:
                quarantine.add(gpu.uuid, f"NVML: {gpu.lost}")
            warn(f"GPU {gpu.uuid} is left out: {gpu.lost}")
            continue
        if reason := excluded.get(gpu.uuid) or excluded.get(gpu.parent or ""):
            warn(f"GPU {gpu.uuid} is left out: in quarantine ({reason})")
            continue
        mine = [holder for holder in holders if holder.device == gpu.uuid]
        foreign = strangers(gpu, mine)
        for process in foreign:
            amount = "an unknown amount of" if process.memory_mib is None else f"{process.memory_mib} MiB"
            warn(f"GPU {gpu.uuid}: process {process.pid}, which holds no lease, uses {amount} memory")
        taken = sum(process.memory_mib or 0 for process in foreign)
        slack = max(_WHOLE_GPU_SLACK_MIB, gpu.total_mib // 10)
        if pid_namespace() != INITIAL_PID_NAMESPACE:
            # Foreign processes cannot be named here, but they use what exceeds all reservations.
            reserved = sum(holder.memory_mib or gpu.total_mib for holder in mine)
            taken = max(taken, gpu.total_mib - gpu.free_mib - reserved - slack)
        # Without leases, NVML's number is exact; with them, it includes our jobs' memory, which the ledger knows better.
        free = gpu.total_mib - taken if mine else min(gpu.free_mib, gpu.total_mib - taken)
        whole = not foreign and (bool(mine) or gpu.free_mib >= gpu.total_mib - slack)
        devices.append(Device(uuid=gpu.uuid, total_mib=gpu.total_mib, free_mib=free, whole=whole))
    return devices


def acquire(
    resources: Resources,
    workspace: Workspace,
    *,
    owner: str,
    team: str = "",
    exclude: tuple[str, ...] = (),
    poll: Callable[[], None],
    waiting: Callable[[str], None],
) -> Placement:
    """Wait for the devices that a job requests, and lease them.

    Args:
        owner: Job id, shown to waiting jobs.
        team: Team of the job; teams take turns.
        exclude: GPUs that failed this job before; used again only if there are no others.
        poll: Called at least every half second; may raise to give up.
        waiting: Called with the reason of waiting when it changes.
    """
    if resources.gpus == 0:
        choose_kind(resources, Inventory())
        return Placement(device="cpu")
    inventory = read_inventory() if resources.device != "cpu" else Inventory(reason="device='cpu'")
    kind = choose_kind(resources, inventory)
    ledger = patiently(lambda: Ledger(workspace.leases), what="the lease ledger", meanwhile=poll)
    if kind == "cpu":
        count, memory, slots = 1, None, workspace.cpu_slots
    else:
        inventory = _for_one_job(inventory, resources.gpus)
        count, memory, slots = resources.gpus, resources.gpu_memory_mib, max(1, len(inventory.gpus) // resources.gpus)
        if len([gpu for gpu in inventory.gpus if gpu.uuid not in exclude]) < count:
            exclude = ()
    request = Request(kind=kind, count=count, memory_mib=memory, exclude=exclude, owner=owner, team=team)
    read_at = time.monotonic()
    told: set[str] = set()

    def warn(message: str) -> None:
        if message not in told:
            told.add(message)
            log.warning("%s", message)

    with ledger.ticket(request, poll=poll) as ticket:
        said = ""
        while True:
            poll()
            if kind == "cpu":
                devices = [Device(uuid=f"cpu-{index}", total_mib=1, free_mib=1) for index in range(slots)]
            else:
                devices = as_devices(inventory, ledger, warn=warn)
                if len(devices) < count:
                    raise GpuLost(
                        f"gpus={count}: only {len(devices)} of {len(inventory.gpus)} GPU(s) can be used; {'; '.join(sorted(told))}"
                    )
            lease = ticket.try_acquire(devices, poll=poll)
            if lease is not None:
                return Placement(device=kind, gpus=lease.devices if kind == "cuda" else (), lease=lease, slots=slots, memory_mib=memory)
            message = f"waiting: {ticket.trouble}" if ticket.trouble else _why(request, devices, ledger)
            if message != said:
                waiting(message)
                said = message
            time.sleep(_POLL_S)
            if kind == "cuda" and time.monotonic() >= read_at + _NVML_S:
                inventory, read_at = _for_one_job(read_inventory(), count), time.monotonic()


def claim(names: Sequence[str], kind: str, workspace: Workspace, *, memory_mib: int | None, owner: str, team: str = "") -> Lease | None:
    """Lease exactly these devices if they are free and no job waits for them; else return None."""
    ledger = Ledger(workspace.leases)
    if kind == "cpu":
        devices = [Device(uuid=name, total_mib=1, free_mib=1) for name in names]
    else:
        devices = [device for device in as_devices(read_inventory(), ledger, warn=log.warning) if device.uuid in names]
    with ledger.ticket(Request(kind=kind, count=len(names), memory_mib=memory_mib, owner=owner, team=team)) as ticket:
        return ticket.try_acquire(devices)


def memory_share(gpus: tuple[str, ...], memory_mib: int | None) -> float:
    """Return the share of its GPUs' memory that a job has reserved; 1 for whole GPUs."""
    if not gpus or memory_mib is None:
        return 1.0
    totals = [gpu.total_mib for gpu in read_inventory().gpus if gpu.uuid in gpus]
    return min(1.0, memory_mib * len(totals) / sum(totals)) if totals else 1.0


def lost_gpus(gpus: tuple[str, ...]) -> dict[str, str]:
    """Return the GPUs that NVML reports as lost, with its reason; also one that it no longer lists, such as a lost GPU's MIG device."""
    if not gpus:
        return {}
    found = {gpu.uuid: gpu.lost for gpu in read_inventory().gpus}
    answers = {uuid: found.get(uuid, "not listed any more") for uuid in gpus if found}
    return {uuid: reason for uuid, reason in answers.items() if reason}


def _why(request: Request, devices: list[Device], ledger: Ledger) -> str:
    """Say why a job waits."""
    what = (
        "a CPU slot"
        if request.kind == "cpu"
        else f"{request.count} GPU(s), " + (f"{request.memory_mib} MiB on each" if request.memory_mib else "whole")
    )
    known = {device.uuid for device in devices}
    held = sorted({f"{holder.device} by {holder.owner}" for holder in ledger.holders() if holder.device in known})
    free = ", ".join(f"{device.uuid} {device.free_mib} MiB" for device in devices) if request.kind == "cuda" else ""
    strangers_leave = f"; strangers leave: {free}" if free else ""
    return f"waiting for {what}; held: {', '.join(held) or 'none'}{strangers_leave}; jobs in the queue: {ledger.waiting()}"
