"""The doctor's look at what earlier jobs left: their folders, and studies that were given up."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_nnunet.config import NnunetConfig
from airflow_nnunet.finding import Finding
from airflow_nnunet.task_state import JOB_XCOM
from airflow_nnunet.teams import job_roots
from nnunet_jobs.contract.sharing import explain

# Newest jobs of Airflow's database that are looked for.
_LOOKED_FOR = 200


def examine_jobs(config: NnunetConfig) -> Iterator[Finding]:
    """Whether the folders of jobs that Airflow remembers are where the settings say, and which studies were given up."""
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
        return  # the pool's finding has said so
    known = [Path(root) for root in dict.fromkeys([config.workspace.jobs, *job_roots()])]
    remembered: dict[Path, list[bool]] = defaultdict(list)
    for value in values:
        if not isinstance(value, dict) or "path" not in value:
            continue  # an XCom backend of the site's keeps values elsewhere
        path = Path(value["path"])
        remembered[path.parent].append(path.is_dir() or any((root / path.name).is_dir() for root in known))
    for folder, found in sorted(remembered.items()):
        lost = found.count(False)
        if lost and (not folder.is_dir() or lost == len(found)):
            state = "is empty of them" if folder.is_dir() else "is missing: it was moved, or is not mounted"
            yield Finding(
                topic="jobs",
                ok=False,
                text=f"{lost} of the newest {len(found)} jobs of {folder} are nowhere; that folder {state}. Their pages answer 404 and "
                "their usage is not counted; set jobs (or workspace) in section [nnunet] to where the folder is",
            )


def _decoded(value: Any) -> Any:
    """An XCom's value; some databases keep it as a JSON string."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _studies(config: NnunetConfig) -> Iterator[Finding]:
    """Studies of archives that failed in every run that got them."""
    from airflow_nnunet.dicomweb.handout import given_up_text
    from airflow_nnunet.dicomweb.ledger import ledgers

    try:
        for ledger in ledgers(config.workspace.jobs):
            owner = ledger.owner()
            if lost := [entry for entry in ledger.read().values() if entry.given_up]:
                topic = f"studies of {owner.get('dag')}.{owner.get('task')}"
                yield Finding(topic=topic, ok=False, text=given_up_text(lost))
    except PermissionError as error:
        yield Finding(topic="studies", ok=False, text=explain(error))
