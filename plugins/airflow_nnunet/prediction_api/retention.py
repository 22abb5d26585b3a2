"""Removes a request's files after the number of days in the settings, and an upload without a run after one day."""

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
    """The clean-up has finished, but some folders could not be removed."""


def remove_old(state_of: StateOf | None = None) -> dict[str, int]:
    """Clean up every tenant and return the number of removed requests by DAG.

    Args:
        state_of: Returns the state of a run by DAG and run id, or None if there is no such run. By default the task SDK
            is asked.

    Raises:
        SweepIncomplete: Some folders could not be checked or removed. All others have been removed by then.
    """
    removed: dict[str, int] = {}
    kept: list[str] = []
    for tenant in all_tenants(kept.append):
        gone, troubles = remove_old_of(tenant, state_of or run_state)
        removed[tenant.dag_id] = len(gone)
        kept += troubles
    log.info("removed: %s", removed)
    if kept:
        raise SweepIncomplete(f"{len(kept)} could not be removed, the others were: " + "; ".join(kept))
    return removed


def remove_old_of(tenant: Tenant, state_of: StateOf) -> tuple[list[Path], list[str]]:
    """Remove old requests of one tenant, but not those that are queued or running or cannot be checked.

    Returns:
        The removed folders, and a message for each folder that could not be removed.
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
        # An error with one folder, or in one answer of Airflow, must not keep all others.
        except Exception as error:
            log.warning("%s is kept", folder, exc_info=True)
            kept.append(f"{folder}: {type(error).__name__}: {error}")
    return removed, kept
