"""Asks Airflow about a task instance or a run, which is the only way to tell a user's act from a stopping worker."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

# XCom under which a task's job is on record: {"job_id", "path"}.
JOB_XCOM = "nnunet_job"
# A running task that was marked or cleared. In every other state Airflow itself gave up on this process, because of missed heartbeats
# or of a broker that delivered its message twice, and another try is on its way to the job.
_ENDED = frozenset({None, "success", "failed", "skipped", "removed", "restarting"})


def is_ended(state: str | None) -> bool:
    """Whether a task in this state no longer needs its job; False when its process stops only to be replaced by another one."""
    return state in _ENDED


def task_state(ti: Any) -> str | None:
    """State of a task instance, asked for through the task SDK (works in task and trigger processes).

    Args:
        ti: Anything with ``dag_id``, ``run_id``, ``task_id`` and ``map_index``.
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    map_index = ti.map_index if ti.map_index is not None and ti.map_index >= 0 else None
    states = RuntimeTaskInstance.get_task_states(dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=map_index)
    name = ti.task_id if map_index is None else f"{ti.task_id}_{map_index}"
    state = states.get(ti.run_id, {}).get(name)
    return None if state is None else str(getattr(state, "value", state))


def run_state(dag_id: str, run_id: str) -> str | None:
    """State of a run, None where there is no such run; asked for through the task SDK (works in task and trigger processes)."""
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
    """HTTP status of the execution API's refusal. It is never read from a message, because ids in a message may hold any number."""
    if (response := getattr(error, "response", None)) is not None:  # of the client, in a process without a supervisor
        return int(response.status_code)
    status = (error.error.detail or {}).get("status_code")
    return status if isinstance(status, int) else None
