"""What is removed when: a request's files after the days that the settings say, an upload that no run knows after one day."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from airflow_nnunet.jobs.task_state import run_state
from airflow_nnunet.prediction_api.store import REQUEST_ID, remove, stored_ids
from airflow_nnunet.prediction_api.tenants import Tenant, all_tenants
from nnunet_jobs.contract.storage.permissions import explain_permission_error

log = logging.getLogger(__name__)

CLEANUP_DAG_ID = "nnunet_prediction_cleanup"
_ORPHAN_DAYS = 1.0  # an upload takes minutes; its run follows at once
StateOf = Callable[[str, str], str | None]


class SweepIncomplete(RuntimeError):
    """The clean-up went through, but not all of it could be done."""


def remove_old(state_of: StateOf | None = None) -> dict[str, int]:
    """Clean up every tenant. Returns how many requests were removed by DAG.

    Args:
        state_of: State of a run by DAG and run id, None where there is no such run; asked through the task SDK when
            empty.

    Raises:
        SweepIncomplete: Something could not be removed or judged. All the rest has been removed by then.
    """
    removed: dict[str, int] = {}
    kept: list[str] = []
    for tenant in all_tenants(kept.append):
        gone, troubles = remove_old_of(tenant, state_of or run_state)
        removed[tenant.dag_id] = len(gone)
        kept += troubles
    log.info("removed: %s", removed)
    if kept:
        raise SweepIncomplete(f"{len(kept)} were not removed, the others were: " + "; ".join(kept))
    return removed


def remove_old_of(tenant: Tenant, state_of: StateOf) -> tuple[list[Path], list[str]]:
    """Remove what is too old in one tenant; what is still queued or running stays, and so does what cannot be judged or removed.

    Returns:
        The removed folders, and a sentence for each that should have been.
    """
    removed, kept = [], []
    for folder, days in stored_ids(tenant.workspace):
        if days < min(_ORPHAN_DAYS, tenant.keep_days):
            continue
        try:
            state = state_of(tenant.dag_id, folder.name) if REQUEST_ID.fullmatch(folder.name) else None
            if state is None or (days >= tenant.keep_days and state in ("success", "failed")):
                remove(folder)
                removed.append(folder)
        except PermissionError as error:
            kept.append(explain_permission_error(error))
        # One folder, or one answer of Airflow, is no reason to leave all the others.
        except Exception as error:
            log.warning("%s is kept", folder, exc_info=True)
            kept.append(f"{folder}: {type(error).__name__}: {error}")
    return removed, kept
