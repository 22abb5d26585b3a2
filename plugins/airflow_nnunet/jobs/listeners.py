"""Notices in the API server that a user marked a task, and cancels its job even when no triggerer was running.

The trigger's ``on_kill`` is the usual way. It is missed when the triggerer is down at that moment, or when the task was
between submit and deferral. Airflow calls listeners for a manual mark without a previous state. It does not call them
for a clear; the next try then stops what an earlier one left running.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.listeners import hookimpl

log = logging.getLogger(__name__)


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any, error: Any) -> None:
    """Cancel the job of a task that a user marked failed."""
    if previous_state is None:
        cancel_job_of(task_instance, "the task was marked failed by a user")


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    """Cancel the job of a task that a user marked successful."""
    if previous_state is None:
        cancel_job_of(task_instance, "the task was marked successful by a user")


@hookimpl
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:
    """Cancel the job of a task that a user marked skipped."""
    if previous_state is None:
        cancel_job_of(task_instance, "the task was marked skipped by a user")


def cancel_job_of(task_instance: Any, reason: str) -> None:
    """Cancel the job that the task instance has on record, if there is one and it still runs."""
    path = _recorded_path(task_instance)
    if path is not None:
        cancel_job_at(path, task_instance, reason)


def cancel_job_at(path: str, task_instance: Any, reason: str) -> None:
    """Cancel the job in a directory if it is this task instance's own and still runs.

    Anybody who may run a task can write the XCom with the path, so the directory must have a job of this task instance.
    """
    from airflow_nnunet.jobs.outage import deliver
    from nnunet_jobs.contract.failure import ConfigError
    from nnunet_jobs.contract.job.folder import JobDir

    job = JobDir(path)

    def cancel() -> None:
        labels = job.spec().labels
        expected = {
            "dag_id": task_instance.dag_id,
            "run_id": task_instance.run_id,
            "task_id": task_instance.task_id,
            "map_index": str(task_instance.map_index),
        }
        if any(labels.get(name) != value for name, value in expected.items()):
            log.warning("job %s on record belongs to another task and is not cancelled", job.job_id)
            return
        if not job.state().phase.final and job.cancel_requested() is None:
            job.request_cancel(reason)
            log.info("cancelled job %s: %s", job.job_id, reason)

    try:
        deliver(cancel, lambda: log)
    except (PermissionError, ValueError, KeyError, TypeError, ConfigError) as error:
        # The API server may not see the storage of the jobs. Marking the task must work in any case.
        log.warning("cannot cancel the job of %s.%s: %s", task_instance.dag_id, task_instance.task_id, error)


def _recorded_path(task_instance: Any) -> str | None:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    from airflow_nnunet.jobs.task_state import JOB_XCOM

    with create_session() as session:
        query = XComModel.get_many(
            run_id=task_instance.run_id,
            key=JOB_XCOM,
            task_ids=task_instance.task_id,
            dag_ids=task_instance.dag_id,
            map_indexes=task_instance.map_index,
        )
        row = session.execute(query).first()
    if row is None:
        return None
    value = XComModel.deserialize_value(row[0])
    path = value.get("path") if isinstance(value, dict) else None
    return path if isinstance(path, str) else None
