"""Asks Airflow about a task instance or a run, which is the only way to tell a user's act from a stopping worker."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

# Key of the XCom that records a task's job: {"job_id", "path"}.
JOB_XCOM = "nnunet_job"
# States of a running task that was marked or cleared. In all other states Airflow gave up this process, because of
# missed heartbeats or a message that the broker delivered twice, and another try will attach to the job.
_ENDED = frozenset({None, "success", "failed", "skipped", "removed", "restarting"})


def is_ended(state: str | None) -> bool:
    """Return whether a task in this state no longer needs its job. It is False if another process continues the task."""
    return state in _ENDED


def task_state(ti: Any) -> str | None:
    """Ask for the state of a task instance through the task SDK, which works in task and trigger processes.

    Args:
        ti: Object with ``dag_id``, ``run_id``, ``task_id`` and ``map_index``.
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    map_index = ti.map_index if ti.map_index is not None and ti.map_index >= 0 else None
    states = RuntimeTaskInstance.get_task_states(dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=map_index)
    name = ti.task_id if map_index is None else f"{ti.task_id}_{map_index}"
    state = states.get(ti.run_id, {}).get(name)
    return None if state is None else str(getattr(state, "value", state))


def run_state(dag_id: str, run_id: str) -> str | None:
    """Ask for the state of a run, None if there is no such run, through the task SDK (in task and trigger processes)."""
    from airflow.sdk.api.client import ServerResponseError
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    try:
        state: object = RuntimeTaskInstance.get_dagrun_state(dag_id=dag_id, run_id=run_id)
    except (AirflowRuntimeError, ServerResponseError) as error:
        if _status_of(error) != HTTPStatus.NOT_FOUND:
            raise
        return None
    return str(getattr(state, "value", state))


def _status_of(error: Any) -> int | None:
    """Return the HTTP status of the execution API's refusal. It is not read from messages, as ids have numbers too."""
    if (response := getattr(error, "response", None)) is not None:  # in a process without a supervisor
        return int(response.status_code)
    status = (error.error.detail or {}).get("status_code")
    return status if isinstance(status, int) else None
