"""Defines the container of one attempt by the job's specification and the site's options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_nnunet.backends.docker.options import DockerOptions
from airflow_nnunet.backends.job_container import groups_of, job_environment, job_user
from airflow_nnunet.backends.mounts import Mode, Mount, mounts_for
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.storage.files import content_hash

LABEL = "org.nnunet.job"
_CACHE = "/var/cache/nnunet"
_MIB = 1 << 20
_STOP_MARGIN_S = 30  # time after the job's grace to write the outcome
_LABELS_OF_AIRFLOW = ("dag_id", "run_id", "task_id", "map_index", "team")


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Tells a container to ``run`` an attempt or ``lease`` GPUs for it. ``gpus`` are UUIDs; None means none, empty all."""

    name: str
    arguments: tuple[str, ...] = ()
    gpus: tuple[str, ...] | None = None


RUN = Role(name="run")
LEASE = Role(name="lease", gpus=())


def granted(gpus: Sequence[str]) -> Role:
    """Return the role of running an attempt whose GPUs, or CPU slot, were leased before."""
    return Role(name="run", arguments=("--grant",), gpus=tuple(gpus) or None)


def container_name(job: JobDir, attempt: int, role: Role = RUN) -> str:
    """Return the name of an attempt's container. It has a hash of the folder, as two Airflows may have the same ids."""
    return f"nnunet-{job.job_id}-{content_hash(str(job.path), length=8)}-{attempt}" + ("" if role.name == RUN.name else f"-{role.name}")


def job_labels(job: JobDir) -> dict[str, str]:
    """Return the labels that all containers of a job have, and no others."""
    return {LABEL: job.job_id, f"{LABEL}.folder": content_hash(str(job.path), length=8)}


def container_arguments(options: DockerOptions, job: JobDir, spec: JobSpec, attempt: int, role: Role) -> dict[str, Any]:
    """Return the arguments of ``create_container`` of the low-level client.

    Raises:
        ConfigError: An option does not fit the job.
    """
    uid, gid = job_user(options.user, job)
    told = {f"org.nnunet.{name}": str(spec.labels[name]) for name in _LABELS_OF_AIRFLOW if name in spec.labels}
    return {
        "image": options.image,
        "name": container_name(job, attempt, role),
        "command": [
            *(options.python, "-m", options.module, role.name, str(job.path)),
            *("--attempt", str(attempt), "--own-log", *role.arguments),
        ],
        "entrypoint": "",  # an image's entrypoint may need to be root
        "user": f"{uid}:{gid}",
        "working_dir": "/",
        "environment": job_environment(gpus=role.gpus is not None, more={**_caches(options), **options.environment}),
        "labels": {**told, **job_labels(job), f"{LABEL}.attempt": str(attempt), f"{LABEL}.role": role.name},
        "stop_timeout": round(spec.resources.grace_s) + _STOP_MARGIN_S,
        "healthcheck": {"test": ["NONE"]},  # the heartbeat in the job's folder is used instead
        "host_config": _host(options, spec, job, role),
        "network_disabled": options.network == "none",
    }


def _host(options: DockerOptions, spec: JobSpec, job: JobDir, role: Role) -> dict[str, Any]:
    from docker.constants import DEFAULT_DOCKER_API_VERSION
    from docker.types import HostConfig, LogConfig, Ulimit

    wanted = spec.resources
    limit = wanted.memory_mib * _MIB if wanted.memory_mib else None
    _, gid = job_user(options.user, job)
    return dict(
        HostConfig(
            version=DEFAULT_DOCKER_API_VERSION,
            network_mode=options.network,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            init=True,
            # /tmp is executable, because torch compiles kernels there and loads them
            tmpfs={"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={options.tmp_mib}m"},  # noqa: S108 - the container's own
            mounts=_mounts(options, spec),
            shm_size=wanted.shm_mib * _MIB,
            mem_limit=limit,
            memswap_limit=limit,
            nano_cpus=wanted.cpus * 10**9 or None,
            pids_limit=options.pids_limit,
            ulimits=[Ulimit(name="nofile", soft=options.nofile, hard=options.nofile), Ulimit(name="core", soft=0, hard=0)],
            # only messages before the job's own log is open
            log_config=LogConfig(type="json-file", config={"max-size": "1m", "max-file": "1"}),
            group_add=[str(group) for group in groups_of(spec) if group != gid] or None,
            device_requests=_device_requests(role),
            oom_kill_disable=False,
        )
    )


def _device_requests(role: Role) -> list[Any] | None:
    from docker.types import DeviceRequest

    if role.gpus is None:
        return None
    if not role.gpus:  # all can be seen through NVML, but nothing that computes is in the container
        return [DeviceRequest(count=-1, capabilities=[["gpu", "utility"]])]
    return [DeviceRequest(device_ids=list(role.gpus), capabilities=[["gpu", "compute", "utility"]])]


def lease_mount(spec: JobSpec) -> Mount:
    """Return the mount of the lease ledger of the engine's host, which every container sees."""
    return Mount(path=spec.workspace.leases, mode=Mode.WRITABLE, field="leases")


def _mounts(options: DockerOptions, spec: JobSpec) -> list[Any]:
    from docker.types import Mount as DockerMount

    found = []
    for mount in (*mounts_for(spec), lease_mount(spec)):
        if mount.mode is Mode.HIDDEN:
            found.append(DockerMount(target=mount.path, source=None, type="tmpfs", read_only=True, tmpfs_size=_MIB))
        else:
            found.append(_bind(options.outside(mount.path), mount.path, read_only=mount.mode is Mode.READ_ONLY))
    if options.cache:
        found.append(_bind(options.cache, _CACHE, read_only=False))
    return found


def _bind(source: str, target: str, *, read_only: bool) -> Any:
    from docker.types import Mount as DockerMount

    # rprivate hides from the job what the host mounts below it later
    return DockerMount(target=target, source=source, type="bind", read_only=read_only, propagation="rprivate")


def _caches(options: DockerOptions) -> dict[str, str]:
    if not options.cache:
        return {}
    return {"TORCHINDUCTOR_CACHE_DIR": f"{_CACHE}/inductor", "TRITON_CACHE_DIR": f"{_CACHE}/triton"}
