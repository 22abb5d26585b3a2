"""What Airflow's database says about a task instance now: the only way to tell a user's act from a stopping worker."""

from __future__ import annotations

from typing import Any

# XCom under which a task's job is on record: {"job_id", "path"}.
JOB_XCOM = "nnunet_job"
# A running task that was marked or cleared. In every other state Airflow itself gave up on this process, because of missed heartbeats
# or of a broker that delivered its message twice, and another try is on its way to the job.
_ENDED = frozenset({None, "success", "failed", "skipped", "removed", "restarting"})


def is_ended(state: str | None) -> bool:
    """Whether a task in this state wants its job no more; False when a stopping process of it only makes way for another one."""
    return state in _ENDED


def task_state(ti: Any) -> str | None:
    """State of a task instance, asked for through the task SDK (works in task and trigger processes).

    Args:
        ti: anything with ``dag_id``, ``run_id``, ``task_id`` and ``map_index``.
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    map_index = ti.map_index if ti.map_index is not None and ti.map_index >= 0 else None
    states = RuntimeTaskInstance.get_task_states(dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=map_index)
    name = ti.task_id if map_index is None else f"{ti.task_id}_{map_index}"
    state = states.get(ti.run_id, {}).get(name)
    return None if state is None else str(getattr(state, "value", state))
