"""GPUs for containers, with a real engine: one container leases, another one gets just what was leased, and either may be killed.

The engine is real, the GPUs are not: NVIDIA's hook, which would map devices into a container, does nothing here, and the library that
it would bring along is a stand-in, which shows a container what the engine set NVIDIA_VISIBLE_DEVICES to, as the real one does.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.backends import DockerBackend, JobStatus, Watch
from airflow_nnunet.backends.docker.container import LEASE, RUN, Role, container_name
from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.grant import read_grant
from nnunet_jobs.contract.job.spec import JobSpec, Resources, make_job_id
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices.leases import Ledger
from support.containers import UID, docker_backend, give_workspace, remove_containers
from support.engine import JOBS, Engine, require_engine
from support.jobs import TESTS, compile_library, wait_for

GPUS = ("GPU-a", "GPU-b")
IMAGE = "nnunet-test-gpus:latest"


@pytest.fixture(scope="module")
def gpu_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that takes its host for one with NVIDIA's container toolkit."""
    require_engine()
    pytest.importorskip("docker", reason="the extra docker is not installed")
    runc = shutil.which("runc")
    if runc is None:
        pytest.skip("no runc here: install docker.io")
    import pynvml

    tools = tmp_path_factory.mktemp("toolkit")
    hook = tools / "nvidia-container-runtime-hook"
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)
    with Engine(tmp_path_factory.mktemp("engine"), f"--add-runtime=nvidia={runc}", path=tools) as engine:
        engine.load_base()
        engine.build_jobs()
        context = tmp_path_factory.mktemp("image")
        compile_library(TESTS / "support" / "fake_nvml.c", context / "libnvidia-ml.so.1")
        shutil.copy(pynvml.__file__, context / "pynvml.py")
        (context / "Dockerfile").write_text(f"FROM {JOBS}\nCOPY pynvml.py /opt/nnunet/plugins/\nCOPY libnvidia-ml.so.1 /opt/driver/\n")
        engine.docker("build", "--quiet", "--network=none", "--tag", IMAGE, str(context))
        yield engine


class Site:
    """A workspace, two GPUs, and the backend as submitter and watcher of several jobs."""

    def __init__(self, engine: Engine, workspace: Workspace) -> None:
        give_workspace(workspace)
        self.nvml = Path(workspace.leases) / "nvml.txt"
        self.nvml.parent.mkdir(exist_ok=True)
        os.chown(self.nvml.parent, UID, UID)
        self.nvml.write_text("".join(f"gpu {uuid} 24000 24000 0\n" for uuid in GPUS))
        self.engine = engine
        self.workspace = workspace
        environment = {"FAKE_NVML_STATE": str(self.nvml), "LD_LIBRARY_PATH": "/opt/driver"}
        self.backend: DockerBackend = docker_backend(engine, image=IMAGE, module="support.handover", environment=environment)
        self.watches: dict[str, Watch] = {}

    @property
    def ledger(self) -> Ledger:
        """Only once a job has made its folders, which must be the jobs' user's."""
        return Ledger(self.workspace.leases)

    def submit(self, name: str, **resources: Any) -> JobDir:
        """Submit a job that works until :meth:`finish`; again for its next attempt."""
        script = {"busy": self.workspace.raw, "half": "gpu_memory_mib" in resources, "look": True, "until": str(self._until(name))}
        return self.backend.submit(
            JobSpec(
                job_id=make_job_id("register", name),
                step="register",
                params={"dataset_id": 1, "name": "Test", "source": json.dumps(script)},
                workspace=self.workspace,
                resources=Resources(**{"gpus": 1, "grace_s": 5.0, "shm_mib": 64, **resources}),
            )
        )

    def finish(self, name: str) -> None:
        self._until(name).touch()

    def _until(self, name: str) -> Path:
        return Path(self.workspace.raw) / f"go-{name}"

    def look(self, job: JobDir) -> JobStatus:
        return self.backend.status(job, self.watches.setdefault(job.job_id, Watch(lost_after_s=30)))

    def until(self, condition: Callable[[], Any], *watched: JobDir, what: str) -> Any:
        """Watch these jobs, as their triggers do, until something is so."""

        def seen() -> Any:
            for job in watched:
                assert self.look(job).failure is None, (job.failure(), job.log.read_text())
            return condition()

        return wait_for(seen, timeout_s=90, what=what)

    def running(self, job: JobDir) -> str:
        """The GPU that a job runs on, once it does."""
        self.until(lambda: job.state().phase is Phase.RUNNING, job, what=f"start of {job}: {job.state()}")
        return job.state().message.removeprefix("on ")

    def end(self, job: JobDir) -> JobStatus:
        return wait_for(lambda: (status := self.look(job)).final and status, timeout_s=90, what=f"end of {job}: {job.state()}")

    def failure(self, job: JobDir) -> Failure:
        failure = self.end(job).failure
        assert failure is not None
        return failure

    def kill(self, job: JobDir, role: Role) -> None:
        self.engine.docker("kill", container_name(job, job.state().attempt, role))

    def environment(self, job: JobDir, role: Role) -> dict[str, str]:
        """Of the container's first process, with what the engine added for the GPUs."""
        name = container_name(job, job.state().attempt, role)
        text = self.engine.docker("exec", name, "cat", "/proc/1/environ")
        return dict(entry.split("=", 1) for entry in text.split("\0") if entry)

    def held(self) -> dict[str, str]:
        return {holder.device: holder.owner for holder in self.ledger.holders()}


@pytest.fixture
def site(gpu_engine: Engine, workspace: Workspace) -> Iterator[Site]:
    yield Site(gpu_engine, workspace)
    remove_containers(gpu_engine)


def test_two_jobs_get_a_gpu_each_a_third_waits_and_a_killed_ones_gpu_goes_to_it(site: Site) -> None:
    first, second = site.submit("first"), site.submit("second")
    gpus = {job.job_id: site.running(job) for job in (first, second)}
    assert sorted(gpus.values()) == list(GPUS)
    assert site.held() == {gpu: owner for owner, gpu in gpus.items()}
    for job in (first, second):
        (request,) = site.engine.inspect(container_name(job, 1))["HostConfig"]["DeviceRequests"]
        assert (request["Count"], request["DeviceIDs"]) == (0, [gpus[job.job_id]])
        assert site.environment(job, RUN)["NVIDIA_VISIBLE_DEVICES"] == gpus[job.job_id]
        ended = wait_for(
            lambda job=job: (state := site.engine.inspect(container_name(job, 1, LEASE))["State"])["Status"] == "exited" and state,
            what="the grantor's end",
        )
        assert ended["ExitCode"] == 0

    third = site.submit("third")
    site.until(lambda: "waiting for 1 GPU(s), whole; held: " in third.state().message, first, second, third, what="the third to wait")
    seen = site.environment(third, LEASE)
    assert (seen["NVIDIA_VISIBLE_DEVICES"], seen["NVIDIA_DRIVER_CAPABILITIES"]) == ("all", "utility")
    (request,) = site.engine.inspect(container_name(third, 1, LEASE))["HostConfig"]["DeviceRequests"]
    assert (request["Count"], request["DeviceIDs"] or []) == (-1, [])

    site.kill(first, RUN)
    failure = site.failure(first)
    assert failure.failure_class is FailureClass.LOST
    assert failure.details["container"]["exit_code"] == 137
    assert site.running(third) == gpus[first.job_id]
    assert site.held() == {gpus[first.job_id]: third.job_id, gpus[second.job_id]: second.job_id}

    site.submit("first")
    site.until(lambda: "held: " in first.state().message, first, what="the first's second attempt to wait")
    site.finish("second")
    assert site.end(second).unwrap()["seen"] == [gpus[second.job_id]]
    assert site.running(first) == gpus[second.job_id]
    for name, job, attempt in (("third", third, 1), ("first", first, 2)):
        site.finish(name)
        result = site.end(job).unwrap()
        assert (result["attempt"], result["visible"], result["seen"]) == (attempt, result["gpus"][0], result["gpus"])
    assert site.held() == {}
    assert site.engine.containers() == []


def test_a_container_that_leases_is_killed_before_and_after_its_grant(site: Site) -> None:
    """Before: the attempt is lost. After: the attempt's own container asks for the same GPU anew."""
    holders = [site.submit(name) for name in ("one", "two")]
    for job in holders:
        site.running(job)
    job = site.submit("third")
    site.until(lambda: "held: " in job.state().message, job, what="the third to wait")
    site.kill(job, LEASE)
    assert site.failure(job).failure_class is FailureClass.LOST
    assert site.ledger.waiting() == 0

    site.submit("third")
    site.finish("one")
    site.end(holders[0]).unwrap()
    grant = wait_for(lambda: read_grant(job, 2), what="the grant")  # nobody watches this job now
    site.kill(job, LEASE)
    wait_for(lambda: job.job_id not in site.held().values(), what="the lease's end")
    assert site.running(job) == grant.gpus[0]
    assert site.held()[grant.gpus[0]] == job.job_id
    assert "asking for it again" in job.log.read_text()
    for name, running in (("third", job), ("two", holders[1])):
        site.finish(name)
        site.end(running).unwrap()
    assert site.held() == {}
    assert site.engine.containers() == []


def test_a_mig_device_is_a_gpu_and_two_containers_share_one_by_memory(site: Site) -> None:
    site.nvml.write_text("gpu GPU-cut 80000 79000 0\nmig\nslice 1 MIG-small 20000 20000\nslice 4 MIG-large 40000 40000\n")
    whole, *halves = jobs = [site.submit("whole"), *(site.submit(name, gpu_memory_mib=20_000) for name in ("left", "right"))]
    assert [site.running(job) for job in jobs] == ["MIG-small", "MIG-large", "MIG-large"]
    assert sorted(holder.owner for holder in site.ledger.holders() if holder.device == "MIG-large") == sorted(job.job_id for job in halves)
    (request,) = site.engine.inspect(container_name(whole, 1))["HostConfig"]["DeviceRequests"]
    assert request["DeviceIDs"] == ["MIG-small"]
    for name, job, gpu in (("whole", whole, "MIG-small"), ("left", halves[0], "MIG-large"), ("right", halves[1], "MIG-large")):
        site.finish(name)
        result = site.end(job).unwrap()
        assert (result["visible"], result["seen"]) == (gpu, [gpu])
    assert site.held() == {}


def test_fault_13_a_job_is_cancelled_while_it_waits_and_after_its_grant(site: Site) -> None:
    both = [site.submit("wide", gpus=2)]
    granted = wait_for(lambda: read_grant(both[0], 1), what="the grant")
    assert sorted(granted.gpus) == list(GPUS)
    waits = site.submit("waits")
    site.until(lambda: "held: " in waits.state().message, waits, what="the other one to wait")
    for job in (waits, *both):
        site.backend.cancel(job, "not needed")
        failure = site.failure(job)
        assert (failure.failure_class, failure.cancelled) == (FailureClass.INTERRUPTED, True)
    assert site.held() == {}
    assert site.ledger.waiting() == 0
    assert site.engine.containers() == []
