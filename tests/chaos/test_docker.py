"""The Docker backend under faults of engine, container, submitter and user, with a real engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.backends import DockerBackend, JobStatus, Watch
from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices.leases import Ledger
from support.certificates import make_certificates
from support.containers import UID, container_of, docker_backend, give_workspace, remove_containers
from support.engine import JOBS, Engine, free_port, require_engine
from support.jobs import make_spec, wait_for

TESTS = Path(__file__).resolve().parents[1]
SUBMITTER = """
import sys, time
from pathlib import Path
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.storage.files import read_json
from support.containers import docker_backend
class engine: url = sys.argv[1]
job = docker_backend(engine).submit(JobSpec.from_json(read_json(Path(sys.argv[2]))))
print(job.path, flush=True)
time.sleep(600)
"""


@pytest.fixture
def backend(engine: Engine, workspace: Workspace) -> Iterator[DockerBackend]:
    give_workspace(workspace)
    yield docker_backend(engine)
    remove_containers(engine)


def submit(backend: DockerBackend, workspace: Workspace, name: str = "job", resources: Resources | None = None, **script: Any) -> JobDir:
    return backend.submit(make_spec(workspace, name, resources or Resources(gpus=1, grace_s=10.0), **script))


def running(job: JobDir) -> JobDir:
    wait_for(lambda: job.state().phase is Phase.RUNNING, timeout_s=60, what=f"start of {job}")
    return job


def end(backend: DockerBackend, job: JobDir, watch: Watch | None = None) -> JobStatus:
    watch = watch or Watch()
    return wait_for(lambda: (status := backend.status(job, watch)).final and status, timeout_s=90, what=f"end of {job}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_fault_01_02_and_12_the_submitter_ends_and_the_job_goes_on(
    engine: Engine, backend: DockerBackend, workspace: Workspace, tmp_path: Path, number: int
) -> None:
    go = Path(workspace.raw) / "go"
    spec = make_spec(workspace, "job", Resources(gpus=1, grace_s=10.0), until=str(go), note=str(Path(workspace.raw) / "note"))
    write_json(tmp_path / "spec.json", spec.to_json())
    submitter = subprocess.Popen(
        [sys.executable, "-c", SUBMITTER, engine.url, str(tmp_path / "spec.json")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "plugins"), str(TESTS)])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert submitter.stdout is not None
    with submitter.stdout:
        job = running(JobDir(submitter.stdout.readline().strip()))
        submitter.send_signal(number)
        submitter.wait()
    again = backend.submit(spec)
    assert (again.path, again.state().attempt) == (job.path, 1)
    go.touch()
    assert end(backend, job).unwrap()["attempt"] == 1
    assert len((Path(workspace.raw) / "note").read_text().splitlines()) == 1, "exactly one step ran"


@pytest.mark.parametrize("live_restore", [True, False], ids=["live-restore", "no live-restore"])
def test_fault_06_the_engine_is_killed(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory, live_restore: bool) -> None:
    require_engine()
    give_workspace(workspace)
    with Engine(tmp_path_factory.mktemp("killed"), live_restore=live_restore) as engine:
        engine.load_base()
        engine.build_jobs()
        backend = docker_backend(engine)
        go = Path(workspace.raw) / "go"
        job = running(submit(backend, workspace, until=str(go)))
        container = container_of(engine, job)
        watch = Watch()
        engine.kill()
        beat = job.beat()
        wait_for(lambda: job.beat() > beat + 1, what="the heart, which needs no engine")
        assert not backend.status(job, watch).final, "an engine that does not answer says nothing about the job"
        engine.start()
        if live_restore:
            assert engine.inspect(container)["State"]["Running"]
            submit(backend, workspace, until=str(go))
            go.touch()
            assert end(backend, job, watch).unwrap()["attempt"] == 1
        else:
            failure = end(backend, job, watch).failure
            assert failure is not None
            assert failure.failure_class in (FailureClass.LOST, FailureClass.INTERRUPTED)
            assert not failure.cancelled
            go.touch()
            submit(backend, workspace, until=str(go))
            assert end(backend, job).unwrap()["attempt"] == 2


def test_fault_09_the_runner_is_killed_and_takes_everything_with_it(engine: Engine, backend: DockerBackend, workspace: Workspace) -> None:
    pids = Path(workspace.raw) / "pids"
    script = {"until": str(Path(workspace.raw) / "never"), "workers": 2, "worker_pids": str(pids), "wait_workers": True, "escape": True}
    job = running(submit(backend, workspace, **script))
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2, what="workers")
    assert [holder.owner for holder in Ledger(workspace.leases).holders()] == [job.job_id]
    name = container_of(engine, job)
    # detached: the container may end, and this process with it, before the engine has told how it ended
    engine.docker("exec", "--detach", name, "python3", "-c", f"import os; os.kill({job.state().pid}, 9)")
    failure = end(backend, job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.LOST
    assert failure.details["container"]["exit_code"] == 137
    assert not engine.containers()
    assert not Ledger(workspace.leases).holders()
    submit(backend, workspace, **script)
    assert running(job).state().attempt == 2


def test_fault_13_a_users_cancel_leaves_time_for_saving(engine: Engine, backend: DockerBackend, workspace: Workspace) -> None:
    until, note = Path(workspace.raw) / "never", Path(workspace.raw) / "note"
    job = submit(backend, workspace, until=str(until), note=str(note), slow_stop=3)
    wait_for(note.exists, timeout_s=60, what="the step")
    backend.cancel(job, "marked failed by a user")
    failure = end(backend, job).failure
    assert failure is not None
    assert (failure.failure_class, failure.cancelled) == (FailureClass.INTERRUPTED, True)
    assert "stopped on request" in job.read_log(0)[0].decode(), "the step saved and stopped by itself"
    assert failure.details["container"]["exit_code"] == 1
    assert not engine.containers()
    assert not Ledger(workspace.leases).holders()


def test_fault_13_the_container_of_a_cancelled_job_that_nobody_watches_goes_with_the_next_submit(
    engine: Engine, backend: DockerBackend, workspace: Workspace
) -> None:
    job = running(submit(backend, workspace, until=str(Path(workspace.raw) / "never")))
    name = container_of(engine, job)
    backend.cancel(job, "marked failed in the web page, which ends the trigger that watched")
    wait_for(lambda: name not in engine.containers(everything=False), timeout_s=60, what="the container's end")
    other = submit(docker_backend(engine), workspace, "other")
    assert name not in engine.containers()
    failure = job.failure()
    assert failure is not None
    assert failure.details["container"]["exit_code"] == 1, "its part is on record"
    end(backend, other)


def test_fault_13_a_frozen_container_is_stopped_by_the_engine(engine: Engine, backend: DockerBackend, workspace: Workspace) -> None:
    job = running(submit(backend, workspace, until=str(Path(workspace.raw) / "never")))
    name = container_of(engine, job)
    engine.docker("pause", name)
    backend.cancel(job, "marked failed by a user")
    failure = end(backend, job).failure  # the engine thaws a container for its stop signal, and kills it where that does not help
    assert failure is not None
    assert (failure.failure_class, failure.cancelled) == (FailureClass.INTERRUPTED, True)
    assert not engine.containers()


def test_fault_18_a_leak_ends_the_job_and_not_the_host(engine: Engine, backend: DockerBackend, workspace: Workspace) -> None:
    greedy = Resources(gpus=1, cpus=2, memory_mib=200, grace_s=10.0)
    job = submit(backend, workspace, resources=greedy, allocate_mib=2000)
    failure = end(backend, job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.HOST_OOM
    submit(backend, workspace, resources=greedy, allocate_mib=2000)
    again = end(backend, job).failure
    assert again is not None
    assert (again.attempt, again.details["cpus"]) == (2, 1), "half the cores after running out of memory"


def test_fault_58_what_a_container_may_do(engine: Engine, backend: DockerBackend, workspace: Workspace) -> None:
    places = ["/", "/usr", "/tmp", "/dev/shm", workspace.raw, workspace.jobs, workspace.results, *workspace.output_roots]
    resources = Resources(gpus=1, cpus=1, memory_mib=512, shm_mib=96, grace_s=60)
    backend = docker_backend(engine, keep_containers=True)
    job = submit(backend, workspace, resources=resources, surface=places)
    result = end(backend, job).unwrap()
    assert result["user"] == [UID, UID]
    assert result["rights"] == {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
    assert result["writable"] == ["/tmp", "/dev/shm", workspace.raw]
    assert (result["sockets"], result["interfaces"], result["shm_mib"], result["home"]) == ([], ["lo"], 96, "/tmp")
    assert not [name for name in result["environment"] if "AIRFLOW" in name]

    found = engine.inspect(container_of(engine, job))
    host = found["HostConfig"]
    assert found["Config"]["User"] == f"{UID}:{UID}"
    assert (host["ReadonlyRootfs"], host["Privileged"], host["NetworkMode"], host["Init"]) == (True, False, "none", True)
    assert (host["CapDrop"], host["CapAdd"], host["SecurityOpt"]) == (["ALL"], None, ["no-new-privileges:true"])
    assert (host["Memory"], host["MemorySwap"], host["ShmSize"], host["NanoCpus"]) == (512 << 20, 512 << 20, 96 << 20, 10**9)
    assert host["PidsLimit"] == 4096
    assert found["Config"]["StopTimeout"] == 90
    seen = {mount["Destination"]: mount["RW"] for mount in found["Mounts"]}
    assert seen == {workspace.raw: True, str(job.path): True, workspace.leases: True, str(Path(workspace.raw).parents[1]): False, **{
        path: False for path in workspace.output_roots if not Path(path).is_relative_to(Path(workspace.raw).parents[1])
    }}  # fmt: skip
    assert not any("docker.sock" in mount["Source"] for mount in found["Mounts"])

    whole = job.result()
    assert whole is not None
    facts = whole["container"]
    assert (facts["exit_code"], facts["oom_killed"], facts["image"]) == (0, False, JOBS)
    assert facts["image_digest"] == engine.docker("image", "inspect", "--format", "{{.Id}}", JOBS)


@pytest.mark.parametrize(
    ("options", "resources", "words"),
    [
        ({"image": "no-such-image:1"}, {}, "build or load it"),
        ({"module": "no_such_module"}, {}, "No module named"),
        ({"python": "no-such-python"}, {}, "no-such-python"),
        ({}, {"shm_mib": 1 << 30}, "shm_mib=1073741824"),
        ({}, {"device": "cuda", "gpus": 1}, "NVIDIA"),
        ({"gpus": "all"}, {"gpus": 1}, "device driver"),
    ],
)
def test_what_cannot_run_is_told_at_once_and_not_retried(
    engine: Engine, backend: DockerBackend, workspace: Workspace, options: dict[str, Any], resources: dict[str, Any], words: str
) -> None:
    backend = docker_backend(engine, **options)
    job = submit(backend, workspace, resources=Resources(**resources))
    failure = end(backend, job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.CONFIG
    assert words in failure.message
    assert not engine.containers()


def test_a_workspace_of_roots_is_refused(engine: Engine, workspace: Workspace) -> None:
    job = submit(docker_backend(engine), workspace)
    failure = job.failure()
    assert failure is not None
    assert failure.failure_class is FailureClass.CONFIG
    assert "jobs never run as root" in failure.message


def test_an_engine_on_the_network_is_reached_by_tls_alone(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> None:
    require_engine()
    give_workspace(workspace)
    certificates = make_certificates(tmp_path_factory.mktemp("tls"))
    port = free_port()
    options = [
        "--tlsverify",
        f"--tlscacert={certificates['ca']}",
        f"--tlscert={certificates['server']}",
        f"--tlskey={certificates['server_key']}",
    ]
    with Engine(tmp_path_factory.mktemp("remote"), f"--host=tcp://127.0.0.1:{port}", *options) as engine:
        engine.load_base()
        engine.build_jobs()
        keys = {"ca_cert": certificates["ca"], "client_cert": certificates["client"], "client_key": certificates["client_key"]}
        good = docker_backend(engine, docker_url=f"tcp://127.0.0.1:{port}", tls=keys)
        job = submit(good, workspace)
        assert end(good, job).unwrap()["attempt"] == 1
        stranger = {**keys, "client_cert": certificates["stranger"], "client_key": certificates["stranger_key"]}
        refused = submit(docker_backend(engine, docker_url=f"tcp://127.0.0.1:{port}", tls=stranger), workspace, "other")
        failure = refused.failure()
        assert failure is not None
        assert "does not answer" in failure.message
