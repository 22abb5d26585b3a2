"""The Docker backend on an engine of the tests' own, and a workspace that belongs to the jobs' user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.backends import DockerBackend
from airflow_nnunet.backends.docker.container import LABEL, container_name, job_labels
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.workspace import Workspace
from support.engine import JOBS, Engine, require_engine

UID = 12345


def make_engine(factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A running engine with the small image of jobs."""
    require_engine()
    pytest.importorskip("docker", reason="the extra docker is not installed")
    with Engine(factory.mktemp("engine")) as engine:
        engine.load_base()
        engine.build_jobs()
        yield engine


def docker_backend(engine: Engine, **options: Any) -> DockerBackend:
    """The backend on that engine, with the tests' own steps."""
    return DockerBackend(
        **{"image": JOBS, "docker_url": engine.url, "python": "python3", "module": "support.jobs", "pull": "never"} | options
    )


def give_workspace(workspace: Workspace) -> None:
    """Roots that belong to the jobs' user, in folders that it may pass."""
    for root in (workspace.raw, workspace.preprocessed, workspace.results, workspace.jobs, *workspace.output_roots):
        Path(root).mkdir(parents=True, exist_ok=True)
        os.chown(root, UID, UID)
    for folder in (Path(workspace.jobs), *Path(workspace.jobs).parents):
        folder.chmod(folder.stat().st_mode | 0o755)


def container_of(engine: Engine, job: JobDir) -> str:
    """Name of the job's one container."""
    found = [name for name in engine.containers() if name.startswith(f"nnunet-{job.job_id}-")]
    assert len(found) == 1, found
    return found[0]


def pretend_container(engine: Engine, job: JobDir) -> None:
    """A container that looks like the job's first attempt and does nothing."""
    name = container_name(job, 1)
    labels = [f"--label={key}={value}" for key, value in {**job_labels(job), f"{LABEL}.attempt": "1"}.items()]
    engine.docker("run", "--detach", "--network=none", "--name", name, *labels, JOBS, "sleep", "600")


def remove_containers(engine: Engine) -> None:
    """Remove what a test left on the engine."""
    if names := engine.containers():
        engine.docker("rm", "--force", *names)
