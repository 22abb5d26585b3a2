"""The Kubernetes backend on the stand-in cluster, its pods running the tests' own steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow_nnunet.backends import JobStatus, KubernetesBackend, Watch
from airflow_nnunet.backends.kubernetes.pod import build_pod, pod_name
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.workspace import Workspace
from support.cluster import Cluster, running_cluster
from support.jobs import TESTS, make_spec, no_runner_left, wait_for

NAMESPACE = "nnunet"
TEMPLATE = TESTS.parent / "include" / "kubernetes" / "pod_template.yaml"


def pod_options(tmp_path: Path, **options: Any) -> dict[str, Any]:
    """Options of a backend whose one claim holds everything below the test's folder; jobs are not root's even where we are."""
    return {
        "image": "registry.example/nnunet:1",
        "namespace": NAMESPACE,
        "volumes": {str(tmp_path): "data"},
        "user": f"{os.geteuid() or 1000}:{os.getegid() or 1000}",
        "module": "support.jobs",
        "environment": {"PYTHONPATH": os.pathsep.join([str(TESTS.parent / "plugins"), str(TESTS)])},
        "pod_template_file": str(TEMPLATE),
        **options,
    }


@contextmanager
def kubernetes(tmp_path: Path, **options: Any) -> Iterator[tuple[KubernetesBackend, Cluster]]:
    """A backend and its cluster."""
    with running_cluster(tmp_path / "cluster") as (cluster, kubeconfig):
        yield KubernetesBackend(**pod_options(tmp_path, config_file=str(kubeconfig), **options)), cluster


@contextmanager
def kubernetes_bench(tmp_path: Path, workspace: Workspace) -> Iterator[tuple[KubernetesBackend, Callable[[JobDir], None]]]:
    """For the suite of all backends: the backend, and what makes a pod on a node of which nothing more is heard."""
    with kubernetes(tmp_path) as (backend, cluster):

        def on_a_silent_node(job: JobDir) -> None:
            pod = build_pod(backend.options, job, job.spec(), 1)
            running = {"name": "job", "image": "", "imageID": "", "ready": True, "restartCount": 0, "state": {"running": {}}}
            body = backend.runtime.api.api_client.sanitize_for_serialization(pod)
            cluster.put(NAMESPACE, body, {"phase": "Running", "containerStatuses": [running]})

        yield backend, on_a_silent_node


class PodSite:
    """A backend on a cluster, and what tests ask of them."""

    def __init__(self, backend: KubernetesBackend, cluster: Cluster, workspace: Workspace, folder: Path) -> None:
        self.backend = backend
        self.cluster = cluster
        self.workspace = workspace
        self.never = str(folder / "never")
        self.now = 0.0
        backend.files_s = 0.1  # one machine: files are seen at once
        backend.finish_s = 5.0

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


@contextmanager
def pod_site(workspace: Workspace, tmp_path: Path, **options: Any) -> Iterator[PodSite]:
    """A site; nothing of it runs afterwards."""
    with no_runner_left(workspace), kubernetes(tmp_path, **options) as (backend, cluster):
        yield PodSite(backend, cluster, workspace, tmp_path)


# --- statuses as kubelet and scheduler write them -------------------------------------------------------------------
def container(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "job", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}]


def condition(kind: str, value: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": value, "reason": reason, "message": message}


SCHEDULED = {"type": "PodScheduled", "status": "True"}
NO_ROOM = condition("PodScheduled", "False", "Unschedulable", "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.")
