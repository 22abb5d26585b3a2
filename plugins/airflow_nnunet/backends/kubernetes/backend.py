"""The Kubernetes backend, which runs jobs as pods of one namespace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from airflow_nnunet.backends.contained import ContainedBackend
from airflow_nnunet.backends.job_container import job_user
from airflow_nnunet.backends.kubernetes.cluster import Cluster
from airflow_nnunet.backends.kubernetes.options import PodOptions
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.storage.workspace import Workspace


class KubernetesBackend(ContainedBackend):
    """Runs one pod for each attempt of a job.

    The cluster gives a pod its GPUs and queues pods that wait for one. Within the pod, the job leases the GPUs from a
    ledger of the pod's own. Nothing in the pod can access the cluster.

    Args:
        options: See :class:`PodOptions`.
    """

    name = "kubernetes"
    runtime: Cluster

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = PodOptions(**options)
        self.runtime = Cluster(self.options)
        self.schedule_timeout_s = self.options.schedule_timeout_s
        self.start_timeout_s = self.options.start_timeout_s
        self.keep = self.options.keep_pods

    def user(self, job: JobDir) -> tuple[int, int]:
        """See :class:`ContainedBackend`."""
        return job_user(self.options.user, job)

    def examine(self, workspace: Workspace) -> Iterator[tuple[bool, str]]:
        """See :meth:`Backend.examine`."""
        from airflow_nnunet.backends.kubernetes.examine import examine

        return examine(self.options, self.runtime, workspace)

    def _adapted(self, spec: JobSpec) -> JobSpec:
        """Return the specification for a pod, whose cores are not shared among the CPU slots of a host."""
        return replace(spec, workspace=replace(spec.workspace, cpu_slots=1))
