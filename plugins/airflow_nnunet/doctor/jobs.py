"""Checks for the doctor the folders of earlier jobs, and studies that were given up."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from airflow_nnunet.doctor.finding import Finding
from airflow_nnunet.jobs.task_state import JOB_XCOM
from airflow_nnunet.settings.config import NnunetConfig
from airflow_nnunet.settings.resolver import job_roots
from nnunet_jobs.contract.storage.permissions import explain_permission_error

# Number of newest jobs in Airflow's database that are checked.
_LOOKED_FOR = 200


def examine_jobs(config: NnunetConfig) -> Iterator[Finding]:
    """Yield job folders that are missing although Airflow has a record of them, and studies that were given up."""
    yield from _moved(config)
    yield from _studies(config)


def _moved(config: NnunetConfig) -> Iterator[Finding]:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    newest = select(XComModel.value).where(XComModel.key == JOB_XCOM).order_by(XComModel.timestamp.desc()).limit(_LOOKED_FOR)
    try:
        with create_session() as session:
            values = [_decoded(value) for (value,) in session.execute(newest)]
    except SQLAlchemyError:
        return  # there is already a finding about the database
    # A site's own XCom backend stores values elsewhere.
    paths = [Path(value["path"]) for value in values if isinstance(value, dict) and "path" in value]
    yield from missing_jobs(paths, [Path(root) for root in dict.fromkeys([config.workspace.jobs, *job_roots()])])


def missing_jobs(paths: Iterable[Path], roots: Sequence[Path]) -> Iterator[Finding]:
    """Yield a finding for each folder whose recorded jobs cannot be found.

    Args:
        paths: Paths of the jobs' folders when the jobs started.
        roots: Jobs folders of the settings, where the jobs may be now.
    """
    remembered: dict[Path, list[bool]] = defaultdict(list)
    for path in paths:
        remembered[path.parent].append(any(_may_be_there(place) for place in (path, *(root / path.name for root in roots))))
    for folder, found in sorted(remembered.items()):
        lost = found.count(False)
        there = _may_be_there(folder)
        if lost and (not there or lost == len(found)):
            state = "has none of them" if there else "is missing: it was moved, or is not mounted"
            yield Finding(
                topic="jobs",
                ok=False,
                text=f"{lost} of the newest {len(found)} jobs of {folder} cannot be found; that folder {state}. Their pages answer 404 and "
                "their usage is not counted; set jobs (or workspace) in section [nnunet] to the folder's path",
            )


def _may_be_there(folder: Path) -> bool:
    """Return whether a folder exists, or True if this user may not know."""
    try:
        return folder.is_dir()
    except PermissionError:
        return True
    except OSError:
        return False


def _decoded(value: Any) -> Any:
    """Return an XCom's value, which some databases store as a JSON string."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _studies(config: NnunetConfig) -> Iterator[Finding]:
    """Yield studies of archives that failed in every run that got them."""
    from airflow_nnunet.dicomweb.handout import given_up_text
    from airflow_nnunet.dicomweb.ledger import ledgers

    try:
        for ledger in ledgers(config.workspace.jobs):
            owner = ledger.owner()
            if lost := [entry for entry in ledger.read().values() if entry.given_up]:
                topic = f"studies of {owner.get('dag')}.{owner.get('task')}"
                yield Finding(topic=topic, ok=False, text=given_up_text(lost))
    except PermissionError as error:
        yield Finding(topic="studies", ok=False, text=explain_permission_error(error))
