"""Faults of a cluster: what a pod's end, its waiting, and an API server that is away mean for the job.

The cluster is a stand-in, see support.cluster: real HTTP, real processes as pods; shapes of failure are statuses as kubelet writes them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from airflow_nnunet.backends import JobStatus, KubernetesBackend, Watch
from airflow_nnunet.backends.kubernetes.pod import pod_name
from airflow_nnunet.config import NnunetConfig
from airflow_nnunet.doctor_backend import examine_backend, runs_here
from airflow_nnunet.triggers import JobTrigger
from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.jobdir import JobDir, Phase
from nnunet_jobs.contract.spec import Resources
from nnunet_jobs.contract.workspace import Workspace
from support.cluster import DIGEST, Cluster, Refusal
from support.jobs import TESTS, compile_library, make_spec, no_runner_left, wait_for
from support.pods import NAMESPACE, kubernetes, pod_options


class Site:
    """A backend on a cluster, and what tests ask of them."""

    def __init__(self, backend: KubernetesBackend, cluster: Cluster, workspace: Workspace, folder: Path) -> None:
        self.backend = backend
        self.cluster = cluster
        self.workspace = workspace
        self.never = str(folder / "never")
        self.now = 0.0
        backend.files_s = 0.1  # one machine: files are seen at once
        backend.settle_s = 5.0

    def submit(self, name: str, resources: Resources | None = None, **script: Any) -> JobDir:
        return self.backend.submit(make_spec(self.workspace, name, resources or Resources(grace_s=5.0), **script))

    def end(self, job: JobDir) -> JobStatus:
        watch = Watch()
        return wait_for(lambda: (status := self.backend.status(job, watch)).final and status, what=f"end of {job}: {job.state()}")

    def begun(self, job: JobDir) -> JobDir:
        """Once the runner only waits for its step: one that is stopped while it writes the job's state would hold its lock."""
        wait_for(lambda: job.state().phase is Phase.RUNNING, what=f"start of {job}")
        beat = job.beat()
        wait_for(lambda: job.beat() > beat, what=f"heartbeat of {job}")
        return job

    def clock(self) -> float:
        return self.now

    def name(self, job: JobDir, attempt: int = 1) -> str:
        return pod_name(job, attempt)

    def waiting(self, **status: Any) -> None:
        """New pods stay like this."""
        self.cluster.hold = lambda pod: {"phase": "Pending", **status}


@pytest.fixture
def site(workspace: Workspace, tmp_path: Path) -> Iterator[Site]:
    with no_runner_left(workspace), kubernetes(tmp_path) as (backend, cluster):
        yield Site(backend, cluster, workspace, tmp_path)


def container(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "job", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}]


def condition(kind: str, value: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": value, "reason": reason, "message": message}


SCHEDULED = {"type": "PodScheduled", "status": "True"}


# --- ends -----------------------------------------------------------------------------------------------------------
def test_an_end_is_on_record_with_digest_and_exit_code_and_the_pod_is_removed(site: Site) -> None:
    job = site.submit("record")
    site.end(job)
    result = job.result()
    assert result is not None
    assert result["container"] == {
        "backend": "kubernetes", "name": site.name(job), "namespace": NAMESPACE, "node": "node-1", "image": "registry.example/nnunet:1",
        "image_digest": DIGEST, "exit_code": 0, "oom_killed": False,
    }  # fmt: skip
    assert site.cluster.names() == []
    assert "runs on" in job.log.read_text(), "what the runner says is in the job's log"


def test_a_pod_is_kept_where_the_site_says_so(workspace: Workspace, tmp_path: Path) -> None:
    with no_runner_left(workspace), kubernetes(tmp_path, keep_pods=True) as (backend, cluster):
        site = Site(backend, cluster, workspace, tmp_path)
        job = site.submit("kept", **{"raise": "data"})
        failure = site.end(job).failure
        assert failure is not None
        recorded = job.failure()
        assert recorded is not None
        assert recorded.details["container"]["exit_code"] == 1
        assert cluster.names() == [site.name(job)]
        site.submit("kept", **{"raise": "data"})
        site.end(job)
        assert cluster.names() == [site.name(job, 2)], "the next attempt removes what the one before left"


def test_fault_18_a_pod_killed_for_memory_is_host_oom_and_gets_less_next_time(site: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = site.begun(site.submit("oom", until=str(go)))
    site.cluster.kill(site.name(job), reason="OOMKilled")
    failure = site.end(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.HOST_OOM
    assert failure.exit_code == 128 + signal.SIGKILL
    assert failure.details["container"]["oom_killed"]
    go.touch()
    site.submit("oom", until=str(go))
    assert site.end(job).unwrap()["attempt"] == 2
    assert "half the cores" in job.log.read_text()


@pytest.mark.parametrize(
    ("status", "expected", "said"),
    [
        (
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory. Threshold quantity: 100Mi"},
            FailureClass.HOST_OOM, "low on resource: memory",
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": 'Usage of EmptyDir volume "nnunet-tmp" exceeds the limit "16384Mi".'},
            FailureClass.DISK_FULL, "nnunet-tmp",
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "The node had condition: [PIDPressure]."},
            FailureClass.LOST, "PIDPressure",
        ),
        (
            {"phase": "Failed", "conditions": [condition("DisruptionTarget", "True", "PreemptionByScheduler", "preempting to fit a pod")],
             "containerStatuses": container({"terminated": {"exitCode": 137, "reason": "Error"}})},
            FailureClass.INTERRUPTED, "preempting to fit a pod",
        ),
        (
            {"phase": "Failed", "conditions": [condition("DisruptionTarget", "True", "DeletionByTaintManager", "deleting due to taint")]},
            FailureClass.LOST, "DeletionByTaintManager",
        ),
        (
            {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed due to no nvidia.com/gpu"},
            FailureClass.LOST, "Allocate failed due to no nvidia.com/gpu",
        ),
        (
            {"phase": "Failed", "containerStatuses": container(
                {"terminated": {"exitCode": 128, "reason": "StartError", "message": 'exec: "python": not found'}})},
            FailureClass.CONFIG, "does the image have this interpreter",
        ),
        (
            {"phase": "Failed", "containerStatuses": container(
                {"terminated": {"exitCode": 5, "reason": "Error", "message": "log.txt: No such file or directory"}})},
            FailureClass.CONFIG, "check volumes in backend_options",
        ),
    ],
)  # fmt: skip
def test_an_end_without_an_outcome_has_the_class_of_its_reason(
    site: Site, status: dict[str, Any], expected: FailureClass, said: str
) -> None:
    site.waiting()
    job = site.submit("shape")
    assert not site.backend.status(job, Watch()).final
    site.cluster.set_status(site.name(job), **status)
    failure = site.end(job).failure
    assert failure is not None
    assert failure.failure_class is expected
    assert said in failure.message
    assert site.cluster.names() == []
    site.cluster.hold = lambda pod: None
    site.submit("shape")
    assert site.end(job).unwrap()["attempt"] == 2


def test_an_image_without_our_package_is_a_clear_error(workspace: Workspace, tmp_path: Path) -> None:
    with no_runner_left(workspace), kubernetes(tmp_path, module="no_such_package") as (backend, cluster):
        site = Site(backend, cluster, workspace, tmp_path)
        failure = site.end(site.submit("package")).failure
        assert failure is not None
        assert failure.failure_class is FailureClass.CONFIG
        assert "No module named no_such_package" in failure.message


def test_a_pod_that_does_not_see_the_job_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nnunet_jobs", "run", str(tmp_path / "absent"), "--attempt", "1", "--own-log"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "this container does not see the job's folder" in done.stderr


def test_a_deleted_pod_is_lost_and_the_next_attempt_begins(site: Site) -> None:
    job = site.begun(site.submit("deleted", until=site.never))
    site.cluster.kill(site.name(job))
    wait_for(lambda: site.cluster.pod(site.name(job))["status"]["phase"] == "Failed")
    site.cluster.pods.clear()  # by hand, or by the cluster's garbage collection
    failure = site.end(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.LOST
    assert "is gone" in failure.message
    site.begun(site.submit("deleted", until=site.never))
    assert job.state().attempt == 2


# --- waiting --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("waiting", "said"),
    [
        ({"reason": "ErrImagePull", "message": "manifest unknown"}, "manifest unknown"),
        ({"reason": "ImagePullBackOff", "message": 'Back-off pulling image "registry.example/nnunet:1"'}, "Back-off pulling"),
        ({"reason": "InvalidImageName", "message": "couldn't parse image name"}, "parse image name"),
        ({"reason": "CreateContainerConfigError", "message": 'secret "registry" not found'}, "secret"),
    ],
)
def test_a_pod_that_can_never_start_fails_at_once(site: Site, waiting: dict[str, Any], said: str) -> None:
    site.waiting(conditions=[SCHEDULED], containerStatuses=container({"waiting": waiting}))
    job = site.submit("image")
    failure = site.end(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.CONFIG, "the same image fails the same way tomorrow"
    assert said in failure.message
    assert site.cluster.names() == []


def test_a_registry_that_is_away_is_waited_for(site: Site) -> None:
    waiting = {"reason": "ErrImagePull", "message": "502 Bad Gateway"}
    site.waiting(conditions=[SCHEDULED], containerStatuses=container({"waiting": waiting}))
    job = site.submit("registry")
    site.cluster.pod(site.name(job))["spec"]["nodeName"] = "node-7"
    assert not site.backend.status(job, Watch()).final
    assert job.state().message == "starts on node-7 (ErrImagePull: 502 Bad Gateway)"


NO_ROOM = condition("PodScheduled", "False", "Unschedulable", "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.")


def test_who_waits_for_a_gpu_is_told_why(site: Site) -> None:
    site.waiting(conditions=[NO_ROOM])
    job = site.submit("queue")
    watch = Watch(lost_after_s=1.0, clock=site.clock)
    for _ in range(20):  # no heartbeat is no wonder: there is no runner
        site.now += 1.0
        assert not site.backend.status(job, watch).final
    assert job.state().phase is Phase.SUBMITTED
    assert job.state().message == "waits for a node: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
    assert site.submit("queue").state().attempt == 1, "a retry attaches to the pod that waits"
    assert len(site.cluster.names()) == 1


@pytest.mark.parametrize(
    ("status", "options", "said"),
    [
        ({"conditions": [NO_ROOM]}, {"schedule_timeout_s": 0.05}, "Insufficient nvidia.com/gpu"),
        ({"phase": "Running", "containerStatuses": container({"running": {}})}, {"start_timeout_s": 1.0}, "does it see the job's folder"),
    ],
)
def test_waiting_has_an_end(workspace: Workspace, tmp_path: Path, status: dict[str, Any], options: dict[str, float], said: str) -> None:
    with kubernetes(tmp_path, **options) as (backend, cluster):
        site = Site(backend, cluster, workspace, tmp_path)
        site.waiting(**status)
        job = site.submit("patience")
        failure = site.end(job).failure
        assert failure is not None
        assert failure.failure_class is FailureClass.LOST
        assert said in failure.message
        assert cluster.names() == [], "what it still held is free"


def test_fault_09_a_silent_node_is_lost_after_the_limit(site: Site) -> None:
    """The pod is said to run, its heart has stopped: the node is cut off, or the runner is stuck."""
    job = site.begun(site.submit("silent", until=site.never))
    os.kill(job.state().pid, signal.SIGSTOP)
    watch = Watch(lost_after_s=60, clock=site.clock)
    site.cluster.set_status(site.name(job), conditions=[condition("Ready", "Unknown", "NodeStatusUnknown", "Kubelet stopped posting")])

    def silent() -> bool:
        before = job.beat()
        site.backend.status(job, watch)
        return job.beat() == before

    wait_for(silent)
    for _ in range(3):
        site.now += 15
        assert not site.backend.status(job, watch).final
    site.now += 30
    for _ in range(3):
        site.now += 15
        status = site.backend.status(job, watch)
    assert status.failure is not None
    assert status.failure.failure_class is FailureClass.LOST
    assert "no heartbeat" in status.failure.message
    assert "NodeStatusUnknown: Kubelet stopped posting" in status.failure.message
    assert site.name(job) in site.cluster.deletions


# --- the API server -------------------------------------------------------------------------------------------------
def test_fault_05_a_beating_job_asks_nothing_of_the_api_server_and_survives_its_outage(site: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = site.begun(site.submit("outage", until=str(go)))
    watch = Watch(lost_after_s=60)
    site.backend.status(job, watch)
    asked = len(site.cluster.requests)
    site.cluster.outage = True
    for _ in range(3):
        beat = job.beat()
        wait_for(lambda beat=beat: job.beat() > beat)
        assert not site.backend.status(job, watch).final
    assert len(site.cluster.requests) == asked
    assert site.submit("outage", until=str(go)).state().attempt == 1, "a retry sees the heart beat"
    go.touch()
    assert site.end(job).unwrap()["attempt"] == 1, "the result waits for the API server a moment only"


def test_a_pod_that_waits_is_not_lost_while_the_api_server_is_away(site: Site) -> None:
    site.waiting(conditions=[NO_ROOM])
    job = site.submit("away")
    site.cluster.outage = True
    watch = Watch(lost_after_s=1.0, clock=site.clock)
    for _ in range(8):
        site.now += 1.0
        assert not site.backend.status(job, watch).final
    assert "kubernetes cannot be asked: the API server" in job.state().message
    site.cluster.outage = False
    site.backend.status(job, watch)
    assert "waits for a node" in job.state().message


def test_a_passing_trouble_at_create_is_tried_again_and_makes_one_pod(site: Site) -> None:
    """The first answer is lost after the pod was made, as by a proxy that restarts."""
    real, lost = site.cluster.put, iter([True])

    def put(namespace: str, body: dict[str, Any], status: Any) -> dict[str, Any]:
        made = real(namespace, body, status)
        if next(lost, False):
            raise Refusal(503, "the server is currently unable to handle the request")
        return made

    site.cluster.put = put  # type: ignore[method-assign]
    job = site.submit("answer")
    assert site.end(job).unwrap()["attempt"] == 1
    assert [method for method, _ in site.cluster.requests].count("POST") == 2


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (403, 'pods is forbidden: User "airflow" cannot create resource "pods"', FailureClass.CONFIG),
        (422, "Pod is invalid: spec.containers[0].image: Required value", FailureClass.CONFIG),
        (404, 'namespaces "nnunet" not found', FailureClass.CONFIG),
        (403, "pods is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1", FailureClass.LOST),
    ],
)
def test_a_refusal_says_why_and_whether_to_try_again(site: Site, code: int, message: str, expected: FailureClass) -> None:
    def refuse(method: str, path: str) -> None:
        if method == "POST":
            raise Refusal(code, message)

    site.cluster.refuse = refuse
    failure = site.end(site.submit("refused")).failure
    assert failure is not None
    assert failure.failure_class is expected
    assert f"the API server says {code}: {message}" in failure.message


def test_a_pod_of_somebody_else_under_our_name_is_not_touched(site: Site) -> None:
    site.waiting()
    job = site.submit("foreign")
    site.cluster.pod(site.name(job))["metadata"]["labels"] = {"app": "other"}
    assert not site.backend.status(job, Watch()).final
    assert "is not ours" in job.state().message
    assert site.cluster.deletions == {}


# --- users and Airflow ----------------------------------------------------------------------------------------------
def test_fault_13_cancel_gives_the_pod_time_to_save(site: Site) -> None:
    job = site.begun(site.submit("cancel", Resources(grace_s=7.0), until=site.never))
    site.backend.cancel(job, "marked failed by a user")
    failure = site.end(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.INTERRUPTED
    assert failure.cancelled
    assert site.cluster.deletions == {site.name(job): 37}, "longer than the runner takes, so that it has the last word"
    wait_for(lambda: site.cluster.names() == [])


def test_fault_13_a_pod_that_does_not_obey_is_killed_by_the_cluster(site: Site) -> None:
    job = site.begun(site.submit("deaf", until=site.never))
    os.kill(job.state().pid, signal.SIGSTOP)  # hears neither file nor signal
    site.backend.cancel(job, "marked failed by a user")
    assert not site.backend.status(job, Watch()).final
    site.cluster.kill(site.name(job))  # the grace is over
    wait_for(lambda: site.cluster.names() == [])
    failure = site.end(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.INTERRUPTED
    assert failure.cancelled
    assert "marked failed by a user" in failure.message


def test_a_pod_that_still_waits_is_taken_back_at_once(site: Site) -> None:
    site.waiting(conditions=[NO_ROOM])
    job = site.submit("early")
    site.backend.cancel(job, "cleared")
    failure = site.backend.status(job, Watch()).failure
    assert failure is not None
    assert failure.cancelled
    assert site.cluster.names() == []


def test_cancel_while_the_api_server_is_away_is_made_good(site: Site) -> None:
    site.waiting(conditions=[NO_ROOM])
    job = site.submit("later")
    site.cluster.outage = True
    site.backend.cancel(job, "cleared")
    assert not site.backend.status(job, Watch()).final
    site.cluster.outage = False
    failure = site.end(job).failure
    assert failure is not None
    assert failure.cancelled
    assert site.cluster.names() == []


def test_fault_01_another_worker_finds_the_pod_again(site: Site, tmp_path: Path) -> None:
    go, note = tmp_path / "go", tmp_path / "note"
    job = site.begun(site.submit("again", until=str(go), note=str(note)))
    options = pod_options(tmp_path, config_file=site.backend.options.config_file)
    code = (
        "import json, sys; from airflow_nnunet.backends import get_backend; from nnunet_jobs.contract.spec import JobSpec\n"
        "spec, options = map(json.loads, sys.argv[1:])\n"
        "print(get_backend('kubernetes', **options).submit(JobSpec.from_json(spec)).state().attempt)"
    )
    arguments = [json.dumps(job.spec().to_json()), json.dumps(options)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=clean(tmp_path))
    assert done.stdout.strip() == "1", done.stderr
    go.touch()
    assert site.end(job).unwrap()["attempt"] == 1
    assert len(note.read_text().splitlines()) == 1
    assert [method for method, _ in site.cluster.requests].count("POST") == 1


def clean(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(TESTS.parent / "plugins"), "AIRFLOW_HOME": str(home / "airflow")}


def test_fault_04_a_trigger_watches_a_pod_by_its_options_and_connection(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a triggerer does it: the backend is made in the event loop from stored JSON, the connection is asked for in a thread."""
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": site.backend.options.config_file}}
    monkeypatch.setenv("AIRFLOW_CONN_CLUSTER", json.dumps(connection))
    job = site.submit("trigger", records=2)
    trigger = JobTrigger(
        job=str(job.path), backend="kubernetes", backend_options=pod_options(tmp_path, kubernetes_conn_id="cluster"), poll_interval=0.05
    )
    _, arguments = trigger.serialize()
    stored = JobTrigger(**json.loads(json.dumps(arguments)))

    async def events() -> list[Any]:
        return [event.payload async for event in stored.run()]

    assert asyncio.run(events()) == [{"job": str(job.path), "attempt": 1, "phase": "done"}]
    assert site.cluster.names() == []


def test_a_cluster_that_is_not_named_is_a_clear_error(workspace: Workspace, tmp_path: Path) -> None:
    backend = KubernetesBackend(**pod_options(tmp_path, config_file=str(tmp_path / "absent.yaml")))
    failure = backend.status(backend.submit(make_spec(workspace, "nowhere")), Watch()).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.CONFIG
    assert "config_file=" in failure.message
    assert "name a connection, a kubeconfig, or set in_cluster" in failure.message


# --- within the pod -------------------------------------------------------------------------------------------------
def test_the_gpu_that_the_cluster_gave_is_leased_from_the_pods_own_ledger(workspace: Workspace, tmp_path: Path) -> None:
    """Within a pod NVML shows its own GPU only; a host's other CPU slots do not count there."""
    (tmp_path / "nvml").mkdir()
    compile_library(TESTS / "support" / "fake_nvml.c", tmp_path / "nvml" / "libnvidia-ml.so.1")
    (tmp_path / "gpus").write_text("gpu GPU-of-the-pod 24576 24000 0\n")
    environment = {
        **pod_options(tmp_path)["environment"],
        "LD_LIBRARY_PATH": str(tmp_path / "nvml"),
        "FAKE_NVML_STATE": str(tmp_path / "gpus"),
    }
    with no_runner_left(workspace), kubernetes(tmp_path, environment=environment, keep_pods=True) as (backend, cluster):
        site = Site(backend, cluster, workspace, tmp_path)
        job = site.submit("gpu", Resources(gpus=1, device="cuda"), show=["CUDA_VISIBLE_DEVICES"])
        result = site.end(job).unwrap()
        assert result["gpus"] == ["GPU-of-the-pod"]
        assert result["environment"] == {"CUDA_VISIBLE_DEVICES": "GPU-of-the-pod"}
        (pod,) = cluster.pods.values()
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert job.spec().workspace.cpu_slots == 1


# --- the doctor -----------------------------------------------------------------------------------------------------
def test_the_doctor_asks_the_cluster(site: Site, tmp_path: Path) -> None:
    options = pod_options(tmp_path, config_file=site.backend.options.config_file)
    config = NnunetConfig(workspace=site.workspace, backend="kubernetes", backend_options=options)
    assert not runs_here(config), "what is installed on this host does not matter"
    findings = list(examine_backend(config))
    assert all(finding.ok for finding in findings)
    text = "\n".join(map(str, findings))
    assert "Kubernetes v1.33.0 answers" in text
    assert "may create, get, list, delete pods in namespace nnunet" in text
    assert "pods for all steps can be built" in text

    def refuse(method: str, path: str) -> None:
        if method == "may create":
            raise Refusal(403, "no")

    site.cluster.refuse = refuse
    denied = list(examine_backend(config))[1]
    assert denied.blocks
    assert denied.text == "pods in namespace nnunet: may not create; apply include/kubernetes/rbac.yaml"
    site.cluster.outage = True
    (away,) = examine_backend(config)
    assert away.blocks
    assert "does not answer" in away.text
    wrong = NnunetConfig(workspace=site.workspace, backend="kubernetes", backend_options={"image": "x"})
    assert "namespace" in str(next(examine_backend(wrong)))
