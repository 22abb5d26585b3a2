"""What a request's run and its folder say about it, in words for whoever asked."""

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
    """``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``."""
    return "cancelled" if run["state"] == "failed" and run.get("note") == CANCELLED else _STATES[run["state"]]


def summary(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the run alone says; for lists."""
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
    """The case's entry in ``predictions.json``; empty before there is one."""
    cases = read_predictions(tenant.requests / request_id / "output").get("cases")
    found = cases.get(request_id) if isinstance(cases, dict) else None
    return found if isinstance(found, dict) else {}


def segmentation(tenant: Tenant, request_id: str) -> Path | None:
    """The segmentation's file, if it is there."""
    name = entry_of(tenant, request_id).get("file")
    path = tenant.requests / request_id / "output" / str(name)
    return path if name and path.name == name and path.is_file() else None


def reason(tenant: Tenant, request_id: str, told: Any) -> str:
    """Why a request failed: what was said about the case, else about the job.

    Args:
        told: What the task has told about its job, which anybody who may run tasks could have written: only its id is
            used.
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
    return "the task ended before it had a result; its log in Airflow says why"
