"""Checks for the doctor whether a cluster answers, whether we may create pods, and whether each step's pod can be built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_nnunet.backends.container_runtime import RequestRejected, Unreachable
from airflow_nnunet.backends.job_container import job_user
from airflow_nnunet.backends.kubernetes.cluster import Cluster
from airflow_nnunet.backends.kubernetes.options import PodOptions
from airflow_nnunet.backends.kubernetes.pod import build_pod
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec, Resources
from nnunet_jobs.contract.storage.workspace import Workspace

VERBS = ("create", "get", "list", "delete")
_SAMPLES: dict[str, dict[str, Any]] = {
    "register": {"dataset_id": 1, "name": "Doctor", "source": "/"},
    "preprocess": {"datasets": [1]},
    "train": {"dataset": 1, "configuration": "2d", "fold": 0},
    "find_best_config": {"dataset": 1},
    "predict": {"dataset": 1, "cases": "holdout", "output": "/"},
}
_GPU_STEPS = ("train", "find_best_config", "predict")


def examine(options: PodOptions, cluster: Cluster, workspace: Workspace) -> Iterator[tuple[bool, str]]:
    """Yield for each check whether it passed, and a message. Nothing is created in the cluster."""
    try:
        version = cluster.version()
        yield True, f"Kubernetes {version} answers"
        missing = [verb for verb in VERBS if not cluster.may(verb)]
    except (ConfigError, Unreachable, RequestRejected) as error:
        yield False, str(error)
        return
    if missing:
        yield False, f"pods in namespace {options.namespace}: may not {', '.join(missing)}; apply include/kubernetes/rbac.yaml"
    else:
        yield True, f"may {', '.join(VERBS)} pods in namespace {options.namespace}"
    job = JobDir(Path(workspace.jobs) / "doctor-sample")
    try:
        for step, params in _SAMPLES.items():
            resources = Resources(gpus=1 if step in _GPU_STEPS else 0)
            build_pod(options, job, JobSpec(job_id=job.job_id, step=step, params=params, workspace=workspace, resources=resources), 1)
        uid, gid = job_user(options.user, job)
    except ConfigError as error:
        yield False, str(error)
    else:
        yield True, f"pods for all steps can be built from image {options.image}, as user {uid}:{gid}"
