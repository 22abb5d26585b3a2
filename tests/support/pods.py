"""The Kubernetes backend on the stand-in cluster, its pods running the tests' own steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow_nnunet.backends import KubernetesBackend
from airflow_nnunet.backends.kubernetes.pod import build_pod
from nnunet_jobs.contract.jobdir import JobDir
from nnunet_jobs.contract.workspace import Workspace
from support.cluster import Cluster, running_cluster
from support.jobs import TESTS

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
            body = backend.cluster.api.api_client.sanitize_for_serialization(pod)
            cluster.put(NAMESPACE, body, {"phase": "Running", "containerStatuses": [running]})

        yield backend, on_a_silent_node
