"""The Kubernetes backend: jobs as pods of one namespace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow_nnunet.backends.contained import ContainedBackend, at_most_one_slot, job_user
from airflow_nnunet.backends.kubernetes.cluster import Cluster
from airflow_nnunet.backends.kubernetes.options import PodOptions
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.storage.workspace import Workspace


class KubernetesBackend(ContainedBackend):
    """One pod for each attempt of a job.

    The cluster gives a pod its GPUs and queues those that wait for one; within the pod, the job leases what it sees from a ledger of
    its own. All that a pod has to do is in its request: nothing in the pod can talk to the cluster.

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

    def submit(self, spec: JobSpec) -> JobDir:
        """See :meth:`Backend.submit`. A pod's cores are its own."""
        return super().submit(at_most_one_slot(spec))

    def user(self, job: JobDir) -> tuple[int, int]:
        """See :class:`ContainedBackend`."""
        return job_user(self.options.user, job)

    def examine(self, workspace: Workspace) -> Iterator[tuple[bool, str]]:
        """See :meth:`Backend.examine`."""
        from airflow_nnunet.backends.kubernetes.examine import examine

        return examine(self.options, self.runtime, workspace)
