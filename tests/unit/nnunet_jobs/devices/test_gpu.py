"""GPUs as they are offered to the ledger: other people's processes, containers, MIG devices, lost ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.devices import gpu
from nnunet_jobs.devices.allocator import Device, Request
from nnunet_jobs.devices.lease import Holder
from nnunet_jobs.devices.leases import Ledger
from nnunet_jobs.devices.nvml import Gpu, GpuProcess, Inventory
from nnunet_jobs.devices.quarantine import Quarantine
from nnunet_jobs.processes import pid_namespace, session_of
from support.jobs import TESTS, compile_library

ELSEWHERE = 4026599999  # a container's namespace


def holder(**values: Any) -> Holder:
    known = {"number": 1, "device": "GPU-a", "memory_mib": 10_000, "owner": "job", "sessions": (), "pid": 1, "follows": None}
    return Holder(**{**known, "pid_namespace": pid_namespace(), **values})


def gpu_with(*pids: int, uuid: str = "GPU-a", free_mib: int = 24_000, **values: Any) -> Gpu:
    processes = tuple(GpuProcess(pid=pid, memory_mib=1000) for pid in pids)
    return Gpu(uuid=uuid, index=0, total_mib=24_000, free_mib=free_mib, processes=processes, **values)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from a container: the host's namespace is another one than ours."""
    monkeypatch.setattr(gpu, "INITIAL_PID_NAMESPACE", 1)


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from the host, also when the tests themselves run in a container."""
    monkeypatch.setattr(gpu, "INITIAL_PID_NAMESPACE", pid_namespace())


@pytest.mark.usefixtures("outside")
def test_on_the_host_a_process_is_a_leases_by_session_or_ancestor() -> None:
    me = os.getpid()
    assert gpu.strangers(gpu_with(me), [holder(sessions=(session_of(me),))]) == []
    assert gpu.strangers(gpu_with(me), [holder(pid=os.getppid())]) == []
    assert [process.pid for process in gpu.strangers(gpu_with(me), [holder(pid=2**22)])] == [me]


@pytest.mark.usefixtures("outside")
def test_on_the_host_numbers_of_a_containers_namespace_say_nothing_about_our_processes() -> None:
    me = os.getpid()
    for numbers in ({"pid": os.getppid()}, {"sessions": (session_of(me),)}):
        assert [process.pid for process in gpu.strangers(gpu_with(me), [holder(pid_namespace=ELSEWHERE, **numbers)])] == [me]


@pytest.mark.usefixtures("outside")
def test_on_the_host_a_process_in_a_holders_container_is_no_stranger() -> None:
    command = [sys.executable, "-c", "print('up', flush=True); input()"]
    with subprocess.Popen(["unshare", "--pid", "--fork", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outer:
        assert outer.stdin is not None
        assert outer.stdout is not None
        if outer.stdout.readline() != b"up\n":
            pytest.skip("no pid namespace can be made here")
        contained = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        assert gpu.strangers(gpu_with(contained), [holder(pid_namespace=pid_namespace(contained))]) == []
        assert len(gpu.strangers(gpu_with(contained), [holder(pid_namespace=ELSEWHERE)])) == 1
        outer.stdin.close()


@pytest.mark.usefixtures("inside")
def test_in_a_container_nobody_is_a_stranger_on_a_gpu_with_holders_and_everybody_on_one_without() -> None:
    seen = gpu_with(1, os.getpid(), 2**22)
    assert gpu.strangers(seen, [holder(pid_namespace=ELSEWHERE)]) == []
    assert gpu.strangers(seen, []) == list(seen.processes)


def lease(ledger: Ledger, **request: Any) -> Any:
    with ledger.ticket(Request(kind="cuda", **request)) as ticket:
        taken = ticket.try_acquire([Device(uuid="GPU-a", total_mib=24_000, free_mib=24_000)])
    assert taken is not None
    return taken


@pytest.mark.usefixtures("inside")
def test_in_a_container_memory_beyond_what_was_reserved_is_strangers(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "leases")
    held = lease(ledger, memory_mib=8_000)
    for used, left in ((0, 24_000), (9_000, 24_000), (12_000, 24_000 - (12_000 - 8_000 - 2_400))):
        inventory = Inventory(gpus=(gpu_with(free_mib=24_000 - used),))
        (device,) = gpu.as_devices(inventory, ledger, warn=lambda message: None)
        assert device.free_mib == left, "our jobs' own memory, and a tenth of the GPU for what no job reserves, is nobody's"
    held.release()


def test_a_mig_device_of_a_gpu_in_quarantine_is_left_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "leases")
    Quarantine(ledger.folder).add("GPU-a", "as the test asked")
    said: list[str] = []
    inventory = Inventory(gpus=(gpu_with(uuid="MIG-1", parent="GPU-a"), gpu_with(uuid="MIG-2", parent="GPU-b")))
    assert [device.uuid for device in gpu.as_devices(inventory, ledger, warn=said.append)] == ["MIG-2"]
    assert said == ["GPU MIG-1 is left out: in quarantine (as the test asked)"]


def test_several_mig_devices_are_not_several_gpus_for_one_job() -> None:
    cut = tuple(gpu_with(uuid=f"MIG-{number}", parent="GPU-cut") for number in range(2))
    assert gpu.choose_kind(Resources(gpus=1), Inventory(gpus=cut)) == "cuda"
    mixed = (*cut, gpu_with(uuid="GPU-a"), gpu_with(uuid="GPU-b"))
    assert gpu.choose_kind(Resources(gpus=2), Inventory(gpus=mixed)) == "cuda"
    for gpus, most in ((cut, 1), (mixed[:3], 1)):
        with pytest.raises(ConfigError, match=rf"and 2 MIG device\(s\), of which it can have one; ask for at most {most}"):
            gpu.choose_kind(Resources(gpus=2), Inventory(gpus=gpus))


def test_a_lease_is_adopted_once_by_its_owner_only_and_all_of_it_or_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "leases")
    pair = [Device(uuid=uuid, total_mib=24_000, free_mib=24_000) for uuid in ("GPU-a", "GPU-b")]
    with ledger.ticket(Request(kind="cuda", count=2, memory_mib=20_000, owner="job")) as ticket:
        first = ticket.try_acquire(pair)
    assert first is not None
    assert not ledger.is_adopted(first)
    assert ledger.adopt(first.numbers, first.devices, owner="other") is None
    assert ledger.adopt(first.numbers, tuple(reversed(first.devices)), owner="job") is None
    assert ledger.adopt((first.numbers[0], 99), first.devices, owner="job") is None
    second = ledger.adopt(first.numbers, first.devices, owner="job")
    assert second is not None
    assert ledger.is_adopted(first)
    assert ledger.adopt(first.numbers, first.devices, owner="job") is None
    assert [(item.number, item.memory_mib) for item in ledger.holders()] == [(number, 20_000) for number in second.numbers]
    with ledger.ticket(Request(kind="cuda", memory_mib=4_000)) as ticket:
        small = ticket.try_acquire(pair)
    assert small is not None, "what changes hands was counted twice"
    with ledger.ticket(Request(kind="cuda", memory_mib=4_001)) as ticket:
        assert ticket.try_acquire(pair) is None, "what changes hands was not counted"
    second.release()
    assert [item.number for item in ledger.holders()] == [*first.numbers, *small.numbers], "the first counts again"
    assert not ledger.is_adopted(first)
    for taken in (first, small):
        taken.release()
    assert ledger.holders() == []


# --- NVML, through the stand-in for its library -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    compile_library(TESTS / "support" / "fake_nvml.c", folder / "libnvidia-ml.so.1")
    return folder


def inventory_of(library: Path, *lines: str, **environment: str) -> dict[str, Any]:
    """What another process reads of such a host."""
    state = library / "state.txt"
    state.write_text("".join(f"{line}\n" for line in lines))
    code = "import json, dataclasses; from nnunet_jobs.devices.nvml import *; print(json.dumps(dataclasses.asdict(read_inventory())))"
    known = {"LD_LIBRARY_PATH": str(library), "FAKE_NVML_STATE": str(state), "PYTHONPATH": str(TESTS.parent / "plugins")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **known, **environment}, stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


CUT = (
    "gpu GPU-whole 24000 23000 0",
    "gpu GPU-cut 80000 79000 0",
    "mig",
    "slice 0 MIG-0 40000 39000",
    "slice 3 MIG-3 20000 19000",
    "process 0 17 100",
)


def test_mig_devices_stand_for_their_gpu(library: Path) -> None:
    found = inventory_of(library, *CUT)["gpus"]
    assert [(item["uuid"], item["total_mib"], item["free_mib"], item["parent"]) for item in found] == [
        ("GPU-whole", 24000, 23000, None),
        ("MIG-0", 40000, 39000, "GPU-cut"),
        ("MIG-3", 20000, 19000, "GPU-cut"),
    ]
    assert [item["processes"] for item in found] == [[{"pid": 17, "memory_mib": 100}], [], []]


def test_a_container_with_one_mig_device_sees_that_one(library: Path) -> None:
    for visible, expected in (("MIG-3", ["MIG-3"]), ("GPU-whole", ["GPU-whole"]), ("MIG-0,GPU-whole", ["GPU-whole", "MIG-0"])):
        found = inventory_of(library, *CUT, NVIDIA_VISIBLE_DEVICES=visible)["gpus"]
        assert [item["uuid"] for item in found] == expected


def test_a_gpu_in_mig_mode_without_devices_is_no_gpu_and_the_reason_says_so(library: Path) -> None:
    found = inventory_of(library, "gpu GPU-cut 80000 79000 0", "mig")
    assert found["gpus"] == []
    assert "1 GPU(s) in MIG mode without MIG devices" in found["reason"]


def test_a_lost_gpu_in_mig_mode_is_one_lost_gpu(library: Path) -> None:
    (found,) = inventory_of(library, "gpu GPU-cut 80000 79000 15", "mig", "slice 0 MIG-0 40000 39000")["gpus"]
    assert (found["uuid"], found["lost"]) == ("GPU-cut", "GPU is lost")


def test_fault_20_a_gpu_that_nvml_does_not_list_any_more_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "read_inventory", lambda: Inventory(gpus=(gpu_with(uuid="GPU-b"), gpu_with(uuid="GPU-c", lost="GPU is lost"))))
    assert gpu.lost_gpus(("MIG-0", "GPU-b", "GPU-c")) == {"MIG-0": "not listed any more", "GPU-c": "GPU is lost"}
    monkeypatch.setattr(gpu, "read_inventory", lambda: Inventory(reason="NVML is not available"))
    assert gpu.lost_gpus(("GPU-b",)) == {}, "where NVML is silent nothing is known"


def test_readers_of_expired_quarantine_entries_do_not_stumble_over_each_other(tmp_path: Path) -> None:
    for number in range(300):
        Quarantine(tmp_path).add(f"GPU-{number}", "long ago", seconds=-1.0)
    Quarantine(tmp_path).add("GPU-now", "as the test asked")
    with ThreadPoolExecutor(8) as pool:
        assert [found.result() for found in [pool.submit(Quarantine(tmp_path).devices) for _ in range(8)]] == [
            {"GPU-now": "as the test asked"}
        ] * 8
