"""The lease ledger and NVML under real faults: holders killed and stopped, GPUs lost, strangers, wrong file systems, floods."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices import leases
from nnunet_jobs.devices.allocator import Device, Request
from nnunet_jobs.devices.leases import MAX_OVERTAKEN, Ledger
from nnunet_jobs.devices.quarantine import Quarantine
from support.jobs import TESTS, backend, child_of, compile_library, make_spec, no_runner_left, wait_final, wait_for, wait_gone

GPUS = [Device(uuid="GPU-24", total_mib=24, free_mib=24), Device(uuid="GPU-48", total_mib=48, free_mib=48)]
SUPPORT = TESTS / "support"
PYTHONPATH = os.pathsep.join([str(TESTS.parent / "plugins"), str(TESTS)])


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "leases")


@pytest.fixture(autouse=True)
def tidy(workspace: Workspace) -> Iterator[None]:
    with no_runner_left(workspace):
        yield


# --- the ledger alone -----------------------------------------------------------------------------------------------
def over_subscribed(ledger: Ledger) -> list[str]:
    """Devices that are given away more than they have, at one moment under the ledger's mutex."""
    held: dict[str, list[int | None]] = {}
    for holder in ledger.holders():
        held.setdefault(holder.device, []).append(holder.memory_mib)
    bad = []
    for device in GPUS:
        amounts = held.get(device.uuid, [])
        if (None in amounts and len(amounts) > 1) or sum(amount or 0 for amount in amounts) > device.total_mib:
            bad.append(f"{device.uuid}: {amounts}")
    return bad


@pytest.mark.parametrize("kills", [200, pytest.param(1000, marks=pytest.mark.nightly)])
def test_fault_23_killed_holders_never_oversubscribe(ledger: Ledger, kills: int) -> None:
    """Eight processes take and return leases; one is killed at random, again and again."""
    devices = json.dumps([{"uuid": gpu.uuid, "total_mib": gpu.total_mib, "free_mib": gpu.free_mib} for gpu in GPUS])

    def start(seed: int) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                from support import lease_worker

                sys.argv = ["lease_worker", str(ledger.folder), devices, str(seed)]
                lease_worker.main()
            finally:
                os._exit(1)
        return pid

    draw = random.Random(23)
    pids = [start(number) for number in range(8)]
    seen_held = 0
    try:
        for number in range(kills):
            time.sleep(draw.random() * 0.006)
            victim = draw.randrange(len(pids))
            os.kill(pids[victim], signal.SIGKILL)
            assert os.waitpid(pids[victim], 0)[1] == signal.SIGKILL, "a worker died by itself"
            assert not over_subscribed(ledger)
            seen_held += bool(ledger.holders())
            pids[victim] = start(1000 + number)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert seen_held > kills // 2, "the ledger was hardly used; the test proves nothing"
    assert ledger.holders() == []
    assert ledger.waiting() == 0
    assert list((ledger.folder / "leases").iterdir()) == []


def test_fault_24_a_stopped_holder_keeps_its_lease(ledger: Ledger) -> None:
    code = (
        "import sys,time; from nnunet_jobs.devices.allocator import *; from nnunet_jobs.devices.leases import *\n"
        "l = Ledger(sys.argv[1]); r = Request(kind='cuda', owner='stopped')\n"
        "with l.ticket(r) as t: lease = t.try_acquire([Device(uuid='GPU-24', total_mib=24, free_mib=24)])\n"
        "print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(ledger.folder)], env={**os.environ, "PYTHONPATH": PYTHONPATH}, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        request = Request(kind="cuda", owner="next")
        with ledger.ticket(request) as ticket:
            assert ticket.try_acquire(GPUS[:1]) is None
            assert [item.owner for item in ledger.holders()] == ["stopped"]
            holder.kill()
            holder.wait()
            lease = ticket.try_acquire(GPUS[:1])
        assert lease is not None
        lease.release()


def test_fault_25_a_network_file_system_is_refused_with_the_reason(tmp_path: Path) -> None:
    library = compile_library(SUPPORT / "network_statfs.c", tmp_path / "statfs.so")
    code = "import sys; from nnunet_jobs.devices.leases import Ledger; Ledger(sys.argv[1])"
    for magic, name in ((0x6969, "nfs"), (0xFE534D42, "smb2"), (0x0BD00BD0, "lustre"), (0x65735546, "ext4")):
        environment = {"LD_PRELOAD": str(library), "NETWORK_PATH": str(tmp_path / "shared"), "NETWORK_MAGIC": hex(magic)}
        ended = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "shared")],
            env={**os.environ, "PYTHONPATH": PYTHONPATH, **environment},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert ended.returncode == 1
        last = ended.stderr.splitlines()[-1]
        assert "ConfigError: leases=" in last
        if name != "ext4":  # FUSE: the mount table tells which, and the test's folder is on no FUSE mount
            assert f"network file system ({name})" in last
        assert "local disk of each host" in last


def test_fault_26_small_jobs_overtake_a_big_one_only_so_often(ledger: Ledger) -> None:
    """A whole GPU is wanted while small jobs keep coming: after a bounded number of them it is the big one's turn."""
    gpu = GPUS[:1]
    small = Request(kind="cuda", memory_mib=6, owner="small")
    big = Request(kind="cuda", owner="big")

    def take_small() -> Any:
        with ledger.ticket(small) as ticket:
            return ticket.try_acquire(gpu)

    running = [take_small()]
    overtook = 0
    with ledger.ticket(big) as waiting:
        for _ in range(100):  # a stream: one comes as soon as another ends
            lease = take_small()
            if lease is not None:
                overtook += 1
                running.append(lease)
            if len(running) > 1 or lease is None:
                running.pop(0).release()
            if not running:
                break
        assert 0 < overtook <= MAX_OVERTAKEN
        won = waiting.try_acquire(gpu)
    assert won is not None
    won.release()


def test_a_small_job_that_delays_nobody_always_goes(ledger: Ledger) -> None:
    """The big job can never use the small GPU, so taking that is no overtaking."""
    held = []
    with ledger.ticket(Request(kind="cuda", memory_mib=40, owner="first")) as ticket:
        held.append(ticket.try_acquire(GPUS))
    with ledger.ticket(Request(kind="cuda", memory_mib=40, owner="big")) as big:
        assert big.try_acquire(GPUS) is None
        for _ in range(3 * MAX_OVERTAKEN):
            with ledger.ticket(Request(kind="cuda", memory_mib=24, owner="small")) as ticket:
                lease = ticket.try_acquire(GPUS)
            assert lease is not None
            assert lease.devices == ("GPU-24",)
            lease.release()
    held[0].release()


def test_a_stopped_waiter_is_passed_over_after_a_while(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "ASLEEP_S", 0.2)
    with ledger.ticket(Request(kind="cuda", owner="asleep")), ledger.ticket(Request(kind="cuda", owner="awake")) as ticket:
        assert ticket.try_acquire(GPUS[:1]) is None
        lease = wait_for(lambda: ticket.try_acquire(GPUS[:1]), what="the sleeper's place")
    lease.release()


def test_a_dead_waiter_holds_nobody_up(ledger: Ledger) -> None:
    pid = os.fork()
    if pid == 0:
        ledger.ticket(Request(kind="cuda", owner="dead")).__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with ledger.ticket(Request(kind="cuda", owner="alive")) as ticket:
        lease = ticket.try_acquire(GPUS[:1])
    assert lease is not None
    lease.release()


# --- jobs on a host with (pretended) GPUs ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the stand-in for libnvidia-ml."""
    folder = tmp_path_factory.mktemp("nvml")
    compile_library(SUPPORT / "fake_nvml.c", folder / "libnvidia-ml.so.1")
    return folder


class Host:
    """A host whose NVML tells what the test writes."""

    def __init__(self, nvml: Path, state: Path) -> None:
        self.state = state
        self.backend = backend(environment={"LD_LIBRARY_PATH": str(nvml), "FAKE_NVML_STATE": str(state)})

    def has(self, *lines: str) -> None:
        self.state.with_suffix(".new").write_text("".join(f"{line}\n" for line in lines))
        self.state.with_suffix(".new").rename(self.state)


@pytest.fixture
def gpu_host(nvml: Path, tmp_path: Path) -> Host:
    host = Host(nvml, tmp_path / "nvml.txt")
    host.has("gpu GPU-small 24576 24000 0", "gpu GPU-large 81920 81000 0")
    return host


ONE_GPU = Resources(gpus=1, grace_s=5.0)


def test_the_step_sees_only_its_gpu(gpu_host: Host, workspace: Workspace) -> None:
    job = gpu_host.backend.submit(make_spec(workspace, "sees", ONE_GPU, show=["CUDA_VISIBLE_DEVICES"]))
    result = wait_final(job).unwrap()
    assert result["device"] == "cuda"
    assert result["gpus"] == ["GPU-small"], "best fit takes the smallest GPU that fits"
    assert result["environment"] == {"CUDA_VISIBLE_DEVICES": "GPU-small"}


def test_two_gpus_for_one_job(gpu_host: Host, workspace: Workspace) -> None:
    job = gpu_host.backend.submit(make_spec(workspace, "two", Resources(gpus=2)))
    assert sorted(wait_final(job).unwrap()["gpus"]) == ["GPU-large", "GPU-small"]
    job = gpu_host.backend.submit(make_spec(workspace, "three", Resources(gpus=3)))
    failure = wait_final(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.CONFIG
    assert "gpus=3: this host has 2" in failure.message


def test_fault_20_a_lost_gpu_is_put_in_quarantine_and_left_out(gpu_host: Host, workspace: Workspace, tmp_path: Path) -> None:
    """The GPU falls off the bus under a running training; the next attempt runs on another one."""
    spec = make_spec(workspace, "lost-gpu", ONE_GPU, until=str(tmp_path / "go"))
    job = gpu_host.backend.submit(spec)
    wait_for(lambda: job.state().message == "on GPU-small", what="start")
    step = child_of(job)
    gpu_host.has("gpu GPU-small 24576 24000 15", "gpu GPU-large 81920 81000 0")
    os.kill(step, signal.SIGSEGV)  # as CUDA's library does when the device is gone
    failure = wait_final(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.GPU_LOST
    assert "GPU-small" in failure.message
    assert "GPU-small" in Quarantine(workspace.leases).devices()
    (tmp_path / "go").touch()
    gpu_host.has("gpu GPU-small 24576 24000 0", "gpu GPU-large 81920 81000 0")  # it answers again, but is not trusted yet
    gpu_host.backend.submit(spec)
    assert wait_final(job).unwrap()["gpus"] == ["GPU-large"]
    assert "another GPU" in job.log.read_text()


def test_when_all_gpus_are_lost_the_job_fails_as_gpu_lost(gpu_host: Host, workspace: Workspace) -> None:
    gpu_host.has("gpu GPU-small 24576 24000 15")
    failure = wait_final(gpu_host.backend.submit(make_spec(workspace, "all-lost", ONE_GPU))).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.GPU_LOST


def test_fault_21_without_nvml_a_gpu_job_is_a_clear_error_and_auto_runs_on_the_cpu(workspace: Workspace) -> None:
    plain = backend(environment={"CUDA_VISIBLE_DEVICES": ""})
    failure = wait_final(plain.submit(make_spec(workspace, "no-nvml", Resources(gpus=1, device="cuda")))).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.CONFIG
    assert "device='cuda': this host offers no GPU" in failure.message
    assert "use device='auto' or 'cpu'" in failure.message
    job = plain.submit(make_spec(workspace, "auto", ONE_GPU))
    result = wait_final(job).unwrap()
    assert (result["device"], result["gpus"]) == ("cpu", [])
    assert "CPU mode: " in job.log.read_text()


def test_fault_22_a_strangers_gpu_is_skipped_and_named(gpu_host: Host, workspace: Workspace, tmp_path: Path) -> None:
    gpu_host.has("gpu GPU-small 24576 20000 0", "gpu GPU-large 81920 81000 0", f"process 0 {os.getpid()} 4576")
    job = gpu_host.backend.submit(make_spec(workspace, "stranger", ONE_GPU))
    assert wait_final(job).unwrap()["gpus"] == ["GPU-large"]
    assert f"GPU GPU-small: process {os.getpid()}, which holds no lease, uses 4576 MiB" in job.log.read_text()
    # A part of its memory can still be had, less what the stranger uses.
    for name, wanted, gpu in (("fits", 20000, "GPU-small"), ("too-much", 20001, "GPU-large")):
        job = gpu_host.backend.submit(make_spec(workspace, name, Resources(gpus=1, gpu_memory_mib=wanted)))
        assert wait_final(job).unwrap()["gpus"] == [gpu]


def test_a_trainer_is_no_stranger_to_its_own_lease(gpu_host: Host, workspace: Workspace, tmp_path: Path) -> None:
    resources = Resources(gpus=1, gpu_memory_mib=8000, grace_s=5.0)
    first = gpu_host.backend.submit(make_spec(workspace, "own", resources, until=str(tmp_path / "go")))
    step = child_of(first)
    gpu_host.has("gpu GPU-small 24576 17000 0", f"process 0 {step} 7576")
    second = gpu_host.backend.submit(make_spec(workspace, "shares", resources))
    assert wait_final(second).unwrap()["gpus"] == ["GPU-small"]
    assert "which holds no lease" not in second.log.read_text()
    third = gpu_host.backend.submit(make_spec(workspace, "whole", ONE_GPU))
    wait_for(lambda: third.state().phase is Phase.WAITING and "held: GPU-small by" in third.state().message, what="waiting")
    (tmp_path / "go").touch()
    wait_final(first)
    gpu_host.has("gpu GPU-small 24576 24000 0")
    assert wait_final(third).unwrap()["gpus"] == ["GPU-small"]


def test_a_job_that_ran_out_of_gpu_memory_gets_another_gpu(gpu_host: Host, workspace: Workspace) -> None:
    spec = make_spec(workspace, "gpu-oom", ONE_GPU, fail_first="gpu_oom")
    job = gpu_host.backend.submit(spec)
    assert wait_final(job).failure is not None
    gpu_host.backend.submit(spec)
    assert wait_final(job).unwrap()["gpus"] == ["GPU-large"]
    assert "ran out of GPU memory" in job.log.read_text()


def test_a_waiting_job_is_cancelled_at_once(gpu_host: Host, workspace: Workspace, tmp_path: Path) -> None:
    gpu_host.has("gpu GPU-small 24576 24000 0")
    first = gpu_host.backend.submit(make_spec(workspace, "holds", ONE_GPU, until=str(tmp_path / "go")))
    child_of(first)
    second = gpu_host.backend.submit(make_spec(workspace, "waits", ONE_GPU))
    wait_for(lambda: "waiting for 1 GPU(s)" in second.state().message, what="waiting")
    gpu_host.backend.cancel(second, "not needed")
    failure = wait_final(second).failure
    assert failure is not None
    assert failure.cancelled
    assert Ledger(workspace.leases).waiting() == 0
    step = child_of(first)
    (tmp_path / "go").touch()
    assert wait_final(first).unwrap()["gpus"] == ["GPU-small"]
    wait_gone(step)
