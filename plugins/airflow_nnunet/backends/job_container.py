"""What the container of a job gets from every runtime: user, groups, environment, and folders that are the user's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.storage.permissions import has_group_access


def job_user(wanted: str | None, job: JobDir) -> tuple[int, int]:
    """Return the user and group id that a job runs as: the option ``user``, or the owner of the job's folder.

    Raises:
        ConfigError: The user would be root.
    """
    if wanted:
        uid, gid = wanted.split(":")
        return int(uid), int(gid)
    place = next(path for path in (job.path.parent, *job.path.parents) if path.exists())
    owner = place.stat()
    if owner.st_uid == 0:
        raise ConfigError(
            where="backend_options:",
            field="user",
            value=wanted,
            problem=f"{place} belongs to root, and jobs never run as root",
            fix="run Airflow's workers as another user, or set user to the uid:gid that the data belongs to",
        )
    return owner.st_uid, owner.st_gid


def groups_of(spec: JobSpec) -> list[int]:
    """Return the group that owns a shared workspace's files, as a supplementary group of the job."""
    jobs = Path(spec.workspace.jobs)
    shared = has_group_access(spec.workspace)
    return [jobs.stat().st_gid] if shared and jobs.exists() and jobs.stat().st_gid else []


def job_environment(*, gpus: bool, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of every container, whose user is not in passwd and cannot write to the root file system."""
    found = {
        "HOME": "/tmp",  # noqa: S108 - the container's own
        "TMPDIR": "/tmp",  # noqa: S108
        "USER": "nnunet",
        "LOGNAME": "nnunet",
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if not gpus:
        # CUDA images request all GPUs themselves, and some hosts grant them to containers that requested none.
        found["NVIDIA_VISIBLE_DEVICES"] = "void"
    return {**found, **more}


def give_to(path: Path, uid: int, gid: int) -> None:
    """Make the job's user the owner of a file or folder, if this process may."""
    if os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)
