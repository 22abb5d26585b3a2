"""Checks the host of the jobs for the doctor: versions, memory, GPUs, and the pool that counts the GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow_nnunet.cli.pools import automatic_slots
from airflow_nnunet.doctor.finding import SYNC, Finding
from airflow_nnunet.settings.config import NnunetConfig
from airflow_nnunet.settings.pool_names import GPU_POOL

# Each data worker opens dozens of files and sockets.
_LOW_FILES = 4096
# Batches are passed between processes through /dev/shm. With 64 MB, Docker's default, they are lost silently.
_LOW_SHM_MIB = 2048


def versions(host: dict[str, Any]) -> Iterator[Finding]:
    """Yield whether nnU-Net and torch are installed where the jobs run."""
    versions = host["versions"]
    missing = [name for name in ("nnunetv2", "torch") if not versions.get(name)]
    where = f"Python {host['python']['version']} ({host['python']['executable']})"
    if missing:
        yield Finding(
            topic="versions", ok=False, blocks=True,
            text=f"{where}: {' and '.join(missing)} not installed; pip install 'airflow-provider-nnunet[local]' there",
        )  # fmt: skip
    else:
        found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        yield Finding(topic="versions", text=f"{where}, {found}")


def memory(host: dict[str, Any]) -> Iterator[Finding]:
    """Yield cores, memory, shared memory and the limit of open files."""
    yield Finding(topic="cores and memory", text=f"{host['cores']} cores, {host['memory_mib']} MiB")
    shm = host["shm_mib"]
    if shm is not None:
        enough = shm >= _LOW_SHM_MIB
        fix = "" if enough else f"; below {_LOW_SHM_MIB} MiB, in a container start it with --shm-size=8g"
        yield Finding(topic="shared memory", ok=enough, text=f"{shm} MiB in all{fix}")
    soft, hard = host["nofile"]["soft"], host["nofile"]["hard"]
    enough = soft < 0 or soft >= _LOW_FILES
    fix = "" if enough else f"; below {_LOW_FILES}, raise it with ulimit -n or LimitNOFILE= (hard limit {hard})"
    yield Finding(topic="open files", ok=enough, text=f"{soft}{fix}")


def gpus(host: dict[str, Any]) -> Iterator[Finding]:
    """Yield the GPUs, and what torch.compile needs there."""
    if not host["gpus"]:
        yield Finding(topic="GPUs", text=f"none, jobs run on CPU slots ({host['gpus_reason']})")
        return
    for gpu in host["gpus"]:
        text = f"{gpu['index']}: {gpu['name']}, {gpu['free_mib']} of {gpu['total_mib']} MiB free, {gpu['uuid']}"
        lost = gpu.get("lost")
        yield Finding(topic="GPUs", ok=not lost, text=f"{text}; it does not answer ({lost}), restart the host" if lost else text)
    if host["torch_cpu_only"]:
        yield Finding(
            topic="torch", ok=False, blocks=True,
            text="built without CUDA although there is a GPU; install the CUDA build of torch and torchvision",
        )  # fmt: skip
    compiler = host["compiler"]
    missing = [name for name in ("gcc", "g++", "python_h") if not compiler[name]]
    if missing:
        fix = "install gcc, g++ and the Python headers, or set nnUNet_compile=f for jobs (slower)"
        yield Finding(topic="compiler", ok=False, text=f"{', '.join(missing)} missing, which torch.compile needs on a GPU; {fix}")
    else:
        yield Finding(topic="compiler", text="gcc, g++ and Python headers found")


def pool(config: NnunetConfig, host: dict[str, Any] | None) -> Finding:
    """Return whether the pool of GPUs has a slot for each of them, and keeps those of deferred tasks."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy.exc import SQLAlchemyError

    topic = f"pool {GPU_POOL}"
    try:
        with create_session() as session:
            pool = Pool.get_pool(GPU_POOL, session=session)
            found = (pool.slots, pool.include_deferred) if pool else None
    except SQLAlchemyError as error:
        first = str(error).splitlines()[0]
        return Finding(topic=topic, ok=False, blocks=True, text=f"Airflow's database does not answer ({first}); run airflow db migrate")
    if found is None:
        return Finding(topic=topic, ok=False, blocks=True, text=f"missing, tasks would wait forever; {SYNC}")
    slots, include_deferred = found
    if not include_deferred:
        text = f"deferred tasks free their slot, so all jobs would start at once; {SYNC}"
        return Finding(topic=topic, ok=False, text=text)
    if host is not None and slots > (fit := automatic_slots(config, host)):
        text = f"{slots} slots for {fit} on this host; this is right for several hosts, else jobs wait for a lease; {SYNC}"
        return Finding(topic=topic, text=text)
    return Finding(topic=topic, text=f"{slots} slots, deferred tasks keep theirs")
