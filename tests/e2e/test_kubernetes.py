"""Pods under a real Airflow: submitted by a worker, watched and taken back by a triggerer, which asks Airflow for the cluster's connection.

The cluster is a stand-in on loopback that runs pods as processes, see support.cluster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.state import Phase
from support.cluster import DIGEST, Cluster, running_cluster
from support.jobs import no_runner_left, wait_for
from support.pods import NO_ROOM, pod_options
from support.stack import Site

pytestmark = pytest.mark.e2e

DAG = "toy_pod"


@pytest.fixture(scope="module")
def cluster(site: Site) -> Iterator[Cluster]:
    """A cluster that the site's Airflow knows by a connection."""
    client = site.stack.client
    with no_runner_left(site.workspace), running_cluster(site.root / "cluster") as (cluster, kubeconfig):
        bodies = {
            "cluster": ("kubernetes", {"kube_config_path": str(kubeconfig)}),
            "pods": (
                "nnunet",
                {"poll_interval": 0.3, "backend": "kubernetes", "backend_options": pod_options(site.root, kubernetes_conn_id="cluster")},
            ),
        }
        for name, (kind, extra) in bodies.items():
            client.request("POST", "connections", json={"connection_id": name, "conn_type": kind, "extra": json.dumps(extra)})
        client.wait_for_dag(DAG)
        yield cluster
        for name in bodies:
            client.request("DELETE", f"connections/{name}")


def begin(site: Site) -> tuple[str, JobDir]:
    """A run whose task is deferred; its pod may still wait."""
    run = site.stack.client.trigger(DAG)
    site.stack.client.wait_for_task(DAG, run, "toy", "deferred", timeout_s=90)
    return run, site.job(DAG, run, "toy")


def test_a_pod_that_waits_for_a_gpu_is_watched_and_its_result_becomes_the_tasks(site: Site, cluster: Cluster) -> None:
    client = site.stack.client
    cluster.hold = lambda pod: {"phase": "Pending", "conditions": [NO_ROOM]}
    run, job = begin(site)
    wait_for(lambda: "Insufficient nvidia.com/gpu" in job.state().message, timeout_s=60, what="the triggerer's word of why it waits")
    (name,) = cluster.names()
    cluster.release(name)  # a GPU is free
    end = site.root / f"{DAG}.end"
    end.touch()
    assert client.wait_for_run(DAG, run, timeout_s=120) == "success"
    end.unlink()
    assert client.xcom(DAG, run, "toy")["attempt"] == 1
    result = job.result()
    assert result is not None
    assert result["container"]["name"] == name
    assert result["container"]["image_digest"] == DIGEST
    assert result["container"]["exit_code"] == 0
    assert cluster.names() == []


def test_fault_13_marking_a_pods_task_failed_takes_the_pod_back(site: Site, cluster: Cluster) -> None:
    client = site.stack.client
    cluster.hold = lambda pod: {"phase": "Pending", "conditions": [NO_ROOM]}
    run, job = begin(site)
    wait_for(lambda: " starting" in client.log(DAG, run, "toy"), timeout_s=60, what="a triggerer that watches")
    (name,) = cluster.names()
    cluster.release(name)
    wait_for(lambda: job.state().phase is Phase.RUNNING, timeout_s=60, what="the pod's runner")
    client.set_state(DAG, run, "toy", "failed")
    failure = wait_for(job.failure, timeout_s=60, what="the cancelled job's end")
    assert failure.cancelled
    wait_for(lambda: cluster.names() == [], what="the pod's end")
    assert cluster.deletions[name] == 35, "the cluster would have killed it after the grace"
