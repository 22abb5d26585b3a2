"""Faults of pods: what an end without an outcome, a start that never comes, and a node that falls silent mean for the job.

The cluster is a stand-in, see support.cluster: real HTTP, real processes as pods; shapes of failure are statuses as kubelet writes them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from airflow_nnunet.backends import Watch
from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.workspace import Workspace
from support.cluster import DIGEST
from support.jobs import wait_for
from support.pods import NAMESPACE, NO_ROOM, SCHEDULED, PodSite, condition, container, pod_site


@pytest.fixture
def site(workspace: Workspace, tmp_path: Path) -> Iterator[PodSite]:
    with pod_site(workspace, tmp_path) as site:
        yield site


# --- ends -----------------------------------------------------------------------------------------------------------
def test_an_end_is_on_record_with_digest_and_exit_code_and_the_pod_is_removed(site: PodSite) -> None:
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
    with pod_site(workspace, tmp_path, keep_pods=True) as site:
        job = site.submit("kept", **{"raise": "data"})
        failure = site.end(job).failure
        assert failure is not None
        recorded = job.failure()
        assert recorded is not None
        assert recorded.details["container"]["exit_code"] == 1
        assert site.cluster.names() == [site.name(job)]
        site.submit("kept", **{"raise": "data"})
        site.end(job)
        assert site.cluster.names() == [site.name(job, 2)], "the next attempt removes what the one before left"


def test_an_end_that_nobody_saw_is_put_on_record_by_the_next_job(site: PodSite) -> None:
    """As after a cancel from the web page while the triggerer is away."""
    waits = site.begun(site.submit("goes-on", until=site.never))
    unseen = site.submit("unseen")
    wait_for(unseen.result, what="the result")
    wait_for(lambda: site.cluster.pod(site.name(unseen))["status"]["phase"] == "Succeeded", what="the pod's end")
    assert "container" not in (unseen.result() or {})
    last = site.submit("last")
    result = unseen.result()
    assert result is not None
    assert result["container"]["exit_code"] == 0
    assert site.cluster.names() == sorted([site.name(waits), site.name(last)])


def test_fault_18_a_pod_killed_for_memory_is_host_oom_and_gets_less_next_time(site: PodSite, tmp_path: Path) -> None:
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
    site: PodSite, status: dict[str, Any], expected: FailureClass, said: str
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


def test_an_image_without_our_package_is_a_clear_error(workspace: Workspace, tmp_path: Path) -> None:
    with pod_site(workspace, tmp_path, module="no_such_package") as site:
        failure = site.end(site.submit("package")).failure
        assert failure is not None
        assert failure.failure_class is FailureClass.CONFIG
        assert "No module named no_such_package" in failure.message


def test_a_pod_that_does_not_see_the_job_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nnunet_jobs", "run", str(tmp_path / "absent"), "--attempt", "1", "--own-log"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "this container does not see the job's folder" in done.stderr


def test_a_deleted_pod_is_lost_and_the_next_attempt_begins(site: PodSite) -> None:
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
def test_a_pod_that_can_never_start_fails_at_once(site: PodSite, waiting: dict[str, Any], said: str) -> None:
    site.waiting(conditions=[SCHEDULED], containerStatuses=container({"waiting": waiting}))
    job = site.submit("image")
    failure = site.end(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.CONFIG, "the same image fails the same way tomorrow"
    assert said in failure.message
    assert site.cluster.names() == []


def test_a_registry_that_is_away_is_waited_for(site: PodSite) -> None:
    waiting = {"reason": "ErrImagePull", "message": "502 Bad Gateway"}
    site.waiting(conditions=[SCHEDULED], containerStatuses=container({"waiting": waiting}))
    job = site.submit("registry")
    site.cluster.pod(site.name(job))["spec"]["nodeName"] = "node-7"
    assert not site.backend.status(job, Watch()).final
    assert job.state().message == "starts on node-7 (ErrImagePull: 502 Bad Gateway)"


def test_who_waits_for_a_gpu_is_told_why(site: PodSite) -> None:
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
    with pod_site(workspace, tmp_path, **options) as site:
        site.waiting(**status)
        job = site.submit("patience")
        failure = site.end(job).failure
        assert failure is not None
        assert failure.failure_class is FailureClass.LOST
        assert said in failure.message
        assert site.cluster.names() == [], "what it still held is free"


def test_fault_09_a_silent_node_is_lost_after_the_limit(site: PodSite) -> None:
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
