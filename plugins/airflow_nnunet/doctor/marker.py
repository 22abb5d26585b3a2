"""Checks the workspace's marker for the doctor."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_nnunet.doctor.finding import Finding
from airflow_nnunet.settings.config import NnunetConfig
from airflow_nnunet.settings.workspace_memory import DatabaseMemory
from nnunet_jobs.contract.storage.marker import MARKER, lost_roots, missing_share, read_marker, unmounted_point
from nnunet_jobs.contract.storage.workspace import SHARED_ROOTS

_TOPIC = "workspace"
_MARK = "airflow nnunet mark-workspace"


def examine_marker(config: NnunetConfig) -> Iterator[Finding]:
    """Yield whether every root is mounted and has the marker of this workspace."""
    workspace = config.workspace
    for name in (*SHARED_ROOTS, "jobs"):
        path = getattr(workspace, name)
        try:
            point = unmounted_point(path)
        except OSError as error:
            yield Finding(topic=_TOPIC, ok=False, blocks=True, text=f"{name}: {path} does not answer ({error.strerror})")
            return
        if point is not None:
            text = f"{name}: {path} is below {point}, a mount point of /etc/fstab with nothing mounted; mount it"
            yield Finding(topic=_TOPIC, ok=False, blocks=True, text=text)
            return
    try:
        marker = read_marker(workspace.jobs)
        if marker is None:
            yield _unmarked(config)
            return
        lost = list(lost_roots(workspace, marker))
    except (OSError, ValueError) as error:
        text = f"the markers {MARKER} cannot be read ({error}); repair the storage, then run {_MARK}"
        yield Finding(topic=_TOPIC, ok=False, blocks=True, text=text)
        return
    for name, path in lost:
        text = f"{name}: {path} has lost its marker {MARKER}: mount the share, or, if nothing is missing there, run {_MARK}"
        yield Finding(topic=_TOPIC, ok=False, blocks=True, text=text)
    if not lost:
        yield Finding(topic=_TOPIC, text=f"marked ({MARKER} in {', '.join(['jobs', *marker['roots']])})")


def _unmarked(config: NnunetConfig) -> Finding:
    jobs = config.workspace.jobs
    reason = missing_share(config.workspace)
    if reason is None and _known(jobs):
        reason = f"no marker {MARKER}, although jobs have run in this workspace"
    if reason is None:
        return Finding(topic=_TOPIC, ok=False, text=f"{jobs} is not marked yet; the first job marks it, or {_MARK} does")
    text = f"{jobs}: {reason}; jobs are refused. Mount the share, or, if nothing is to be mounted there, run {_MARK}"
    return Finding(topic=_TOPIC, ok=False, blocks=True, text=text)


def _known(jobs: str) -> bool:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return DatabaseMemory().recall(jobs) is not None
    except SQLAlchemyError:
        return False  # there is already a finding about the database
