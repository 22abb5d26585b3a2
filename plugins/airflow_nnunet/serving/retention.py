"""What is removed when: a request's files after the days that the settings say, an upload that no run knows after one day."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from airflow_nnunet.serving.spaces import Space, all_spaces
from airflow_nnunet.serving.store import REQUEST_ID, remove, stored_ids

log = logging.getLogger(__name__)

CLEANUP_DAG_ID = "nnunet_prediction_cleanup"
_ORPHAN_DAYS = 1.0  # an upload takes minutes; its run follows at once
StateOf = Callable[[str, str], str | None]


def remove_old(state_of: StateOf | None = None) -> dict[str, int]:
    """Clean up every space. Returns how many requests were removed by DAG.

    Args:
        state_of: state of a run by DAG and run id, None where there is no such run; asked through the task SDK when empty.
    """
    removed = {space.dag_id: len(remove_old_of(space, state_of or run_state)) for space in all_spaces()}
    log.info("removed: %s", removed)
    return removed


def remove_old_of(space: Space, state_of: StateOf) -> list[Path]:
    """Remove what is too old in one space; what is still queued or running stays. Returns the folders."""
    removed = []
    for folder, days in list(stored_ids(space.workspace)):
        if days < min(_ORPHAN_DAYS, space.keep_days):
            continue
        state = state_of(space.dag_id, folder.name) if REQUEST_ID.fullmatch(folder.name) else None
        if state is None or (days >= space.keep_days and state in ("success", "failed")):
            remove(folder)
            removed.append(folder)
    return removed


def run_state(dag_id: str, run_id: str) -> str | None:
    """State of a run, asked for through the task SDK (works in task processes)."""
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    try:
        state: object = RuntimeTaskInstance.get_dagrun_state(dag_id=dag_id, run_id=run_id)
    except AirflowRuntimeError as error:
        if "not_found" not in str(error).lower() and "404" not in str(error):
            raise
        return None
    return str(getattr(state, "value", state))
