"""Reads a request's state and result from its run and folder, for the answer to the client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_nnunet.prediction_api.tenants import Tenant
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JOB_ID
from nnunet_jobs.contract.storage.predictions import read_predictions

CANCELLED = "cancelled through the prediction API"
_STATES = {"queued": "queued", "running": "running", "success": "succeeded", "failed": "failed"}
_SHOWN = 2000


def state_of(run: Mapping[str, Any]) -> str:
    """Return a run's state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``."""
    return "cancelled" if run["state"] == "failed" and run.get("note") == CANCELLED else _STATES[run["state"]]


def summary(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a list, which needs only the run."""
    conf = run.get("conf") or {}
    return {
        "id": run["dag_run_id"],
        "status": state_of(run),
        "dataset": conf.get("dataset"),
        "model": conf.get("model"),
        "created": run.get("queued_at") or run.get("run_after"),
        "started": run.get("start_date"),
        "finished": run.get("end_date"),
    }


def entry_of(tenant: Tenant, request_id: str) -> dict[str, Any]:
    """Return the case's entry in ``predictions.json``, or an empty dictionary."""
    cases = read_predictions(tenant.requests / request_id / "output").get("cases")
    found = cases.get(request_id) if isinstance(cases, dict) else None
    return found if isinstance(found, dict) else {}


def segmentation(tenant: Tenant, request_id: str) -> Path | None:
    """Return the path of the segmentation, or None if it does not exist."""
    name = entry_of(tenant, request_id).get("file")
    path = tenant.requests / request_id / "output" / str(name)
    return path if name and path.name == name and path.is_file() else None


def reason(tenant: Tenant, request_id: str, told: Any) -> str:
    """Return why a request failed: the reason of the case, or else of the job.

    Args:
        told: XCom with the task's job. Every task could have written it, so only the job's id is used.
    """
    entry = entry_of(tenant, request_id)
    if entry.get("status") == "failed":
        return str(entry.get("reason"))[:_SHOWN]
    job_id = str(told.get("job_id")) if isinstance(told, dict) else ""
    if JOB_ID.fullmatch(job_id):
        try:
            job = JobDir(f"{tenant.workspace.jobs}/{job_id}")
            failure = job.failure() if job.path.is_dir() else None
        except (OSError, ValueError, KeyError, ConfigError):
            failure = None
        if failure is not None:
            return f"{failure.failure_class}: {failure.message}"[:_SHOWN]
    return "the task ended without a result; its log in Airflow says why"
