"""What the host offers: quotas of both cgroup versions, and the probe that reports them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices import host
from support.jobs import TESTS


def cgroup(tmp_path: Path, own: str, files: dict[str, str]) -> dict[str, Path]:
    """A tree of cgroup files as the kernel shows them."""
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"root": tmp_path / "fs", "own": tmp_path / "own"}


def test_version_2_limits_are_the_least_on_the_way_up(tmp_path: Path) -> None:
    tree = cgroup(
        tmp_path,
        "0::/pod/container\n",
        {
            "cgroup.controllers": "cpu memory\n",
            "pod/cpu.max": "50000 100000\n",
            "pod/container/cpu.max": "max 100000\n",
            "pod/memory.max": "max\n",
            "pod/container/memory.max": str(512 << 20),
            "pod/container/memory.events": "low 0\noom 3\noom_kill 2\n",
        },
    )
    assert host.cores(**tree) == 0.5
    assert host.memory_mib(**tree) == 512
    assert host.oom_kills(**tree)[0] == 2


def test_version_1_limits(tmp_path: Path) -> None:
    tree = cgroup(
        tmp_path,
        "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n",
        {
            "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "150000\n",
            "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
            "memory/docker/x/memory.limit_in_bytes": str(1 << 30),
            "memory/docker/x/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
        },
    )
    assert host.cores(**tree) == min(1.5, len(os.sched_getaffinity(0)))
    assert host.memory_mib(**tree) == 1024
    assert host.oom_kills(**tree)[0] == 7


def test_inside_a_container_the_mount_is_ours(tmp_path: Path) -> None:
    """The path in /proc/self/cgroup is the host's; below the container's mount it does not exist."""
    tree = cgroup(tmp_path, "0::/docker/elsewhere\n", {"cgroup.controllers": "", "cpu.max": "25000 100000", "memory.max": str(64 << 20)})
    assert host.cores(**tree) == 0.25
    assert host.memory_mib(**tree) == 64


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    tree = cgroup(tmp_path, "0::/\n", {"cgroup.controllers": ""})
    assert host.cores(**tree) == len(os.sched_getaffinity(0))
    assert host.memory_mib(**tree) > 100
    assert host.oom_kills(**tree)[0] is None


def test_affinity_limits_cores() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from nnunet_jobs.devices import host; print(host.cores() <= 1)"
    )
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent / "plugins")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=True).stdout == b"True\n"


def test_the_probe_prints_json_and_imports_nothing_heavy() -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent / "plugins")}
    command = [sys.executable, "-X", "importtime", "-m", "nnunet_jobs", "probe"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout)
    assert found["cores"] > 0
    assert found["memory_mib"] > 0
    assert {"gpus", "shm_mib", "nofile", "compiler", "versions"} <= found.keys()
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in ended.stderr.splitlines()}
    assert not imported & {"torch", "nnunetv2", "numpy", "nibabel", "SimpleITK", "airflow"}


@pytest.mark.parametrize("command", [["run"], ["step", "x"], ["unknown"], []])
def test_a_wrong_command_line_is_refused(command: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent / "plugins")}
    ended = subprocess.run([sys.executable, "-m", "nnunet_jobs", *command], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "usage:" in ended.stderr


def test_an_attempt_that_was_never_begun_is_refused(workspace: Workspace) -> None:
    from nnunet_jobs.contract.job.folder import JobDir
    from support.jobs import make_spec

    job = JobDir.create(make_spec(workspace, "unbegun"))
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent / "plugins")}
    command = [sys.executable, "-m", "nnunet_jobs", "run", str(job.path), "--attempt", "1"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 4
    assert "was not begun" in ended.stderr
    assert job.failure() is None


def test_a_server_takes_its_cores_from_what_it_may_use_and_not_from_the_host() -> None:
    from nnunet_jobs.cli.serve import cores_of

    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert [cores_of(asked, slots=slots) for asked, slots in ((0, 1), (0, 4), (8, 1), (1, 1))] == [1, 1, 1, 1]
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores_of(0, slots=1) == max(1, int(host.cores()))
