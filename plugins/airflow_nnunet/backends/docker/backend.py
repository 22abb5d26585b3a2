"""The Docker backend: runs each attempt in a container, after another container has leased its GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow_nnunet.backends.contained import ContainedBackend
from airflow_nnunet.backends.container_runtime import RequestRejected, Unreachable
from airflow_nnunet.backends.docker.container import lease_mount
from airflow_nnunet.backends.docker.engine import DockerEngine
from airflow_nnunet.backends.docker.options import DockerOptions
from airflow_nnunet.backends.job_container import job_user
from airflow_nnunet.backends.mounts import Mount
from nnunet_jobs.contract.failure import ConfigError, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.grant import read_grant
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.storage.workspace import Workspace


class DockerBackend(ContainedBackend):
    """Runs jobs in containers of a Docker engine.

    The lease ledger is a folder of the engine's host that every container sees, so kernel locks work between
    containers. A container gets its GPUs when it is created. So a first container, which sees all GPUs and cannot
    compute, waits for the lease and holds it. When it has written ``grant.json``, the watcher of the job starts a
    second container on these GPUs, which takes over the lease.

    Args:
        options: See :class:`DockerOptions`.
    """

    name = "docker"
    runtime: DockerEngine

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = DockerOptions(**options)
        self.runtime = DockerEngine(self.options)
        self.start_timeout_s = self.options.start_timeout_s
        self.keep = self.options.keep_containers

    def user(self, job: JobDir) -> tuple[int, int]:
        """See :class:`ContainedBackend`."""
        return job_user(self.options.user, job)

    def own_mounts(self, spec: JobSpec) -> tuple[Mount, ...]:
        """Return the folder of the lease ledger on the engine's host."""
        return (lease_mount(spec),)

    def wants_a_look(self, job: JobDir, attempt: int) -> bool:
        """Return whether GPUs were leased and their container must be started."""
        return read_grant(job, attempt) is not None

    def examine(self, workspace: Workspace) -> Iterator[tuple[bool, str]]:
        """See :meth:`Backend.examine`."""
        try:
            facts = self.runtime.ask(self.runtime.client.info)
            yield True, f"Docker engine {facts.get('ServerVersion')} on {facts.get('Name')} answers"
            image = self.runtime.image_facts()
        except (ConfigError, Unreachable, RequestRejected) as error:
            yield False, str(error)
            return
        if image is not None:
            yield True, f"image {self.options.image} is there, {int(image.get('Size', 0)) / 1e9:.1f} GB"
        elif self.options.pull == "never":
            yield False, f"image {self.options.image} is not there, and pull is 'never'; build or load it"
        else:
            yield True, f"image {self.options.image} will be pulled"
        gpus = self.runtime.has_gpus(facts)
        yield True, "containers can have GPUs" if gpus else f"containers have no GPUs: no NVIDIA runtime, or gpus={self.options.gpus!r}"
        try:
            uid, gid = self.user(JobDir(f"{workspace.jobs}/doctor-sample"))
        except ConfigError as error:
            yield False, str(error)
        else:
            yield True, f"jobs run as user {uid}:{gid}"

    def _check_container(self, job: JobDir, attempt: int, *, begun: bool, lost: bool, silent: float) -> None:
        grant = read_grant(job, attempt)
        if grant is not None and job.cancel_requested() is None:
            try:
                self.runtime.create_granted(job, job.spec(), attempt, grant)
            except (ConfigError, RequestRejected) as error:
                if isinstance(error, RequestRejected) and error.transient:
                    raise  # the next check tries again; the first container releases its GPUs after a while
                self._declare(job, attempt, FailureClass.CONFIG, f"no container was started on {', '.join(grant.gpus)}: {error}")
                return
        super()._check_container(job, attempt, begun=begun, lost=lost, silent=silent)
