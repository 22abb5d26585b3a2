"""Calls Airflow's own public API in this process, as the user who sent the request.

Runs are created and ended through the same routes that users call. So permission checks, checks of the DAG's params,
the audit log, listeners and the unique (dag_id, run_id) are those of Airflow, and stay right when Airflow changes.
Calling the functions behind the routes would repeat all of that, and a request over the network would need an address
and a port.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
from starlette.requests import Request

from airflow_nnunet.prediction_api import ID_PREFIX, TASK_ID
from nnunet_jobs.contract.http.problems import Problem

_COME_BACK_S = 5


class CoreApi:
    """Calls Airflow's API with the rights of a request's sender."""

    def __init__(self, request: Request) -> None:
        # Only the credentials are passed on.
        self._headers = {name: value for name in ("authorization", "cookie") if (value := request.headers.get(name))}

    async def create_run(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
        """Queue a run. Returns False if there is a run of that id already.

        Raises:
            Problem: Airflow refuses the run.
        """
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        answer = await self._ask("POST", f"dags/{dag_id}/dagRuns", json=body)
        if answer.status_code == 409:
            return False
        self._require(answer)
        return True

    async def run(self, dag_id: str, run_id: str) -> dict[str, Any] | None:
        """Return a run, or None if there is no run of that id."""
        answer = await self._ask("GET", f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")
        if answer.status_code == 404:
            return None
        return dict(self._require(answer))

    async def runs(self, dag_id: str, *, limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
        """Return a page of the runs of requests, the newest first, and their total number."""
        params = {"limit": limit, "offset": offset, "order_by": "-id", "run_id_prefix_pattern": ID_PREFIX}
        found = self._require(await self._ask("GET", f"dags/{dag_id}/dagRuns", params=params))
        return list(found["dag_runs"]), int(found["total_entries"])

    async def fail_run(self, dag_id: str, run_id: str, *, note: str) -> None:
        """Mark a run failed, as the button in the UI does."""
        self._require(await self._ask("PATCH", f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}", json={"state": "failed", "note": note}))

    async def job_of(self, dag_id: str, run_id: str, key: str) -> Any:
        """Return the XCom with the task's job, or None if there is none or the user may not see XComs."""
        path = f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{TASK_ID}/xcomEntries/{key}"
        answer = await self._ask("GET", path, params={"deserialize": False, "stringify": False})
        return answer.json().get("value") if answer.status_code == 200 else None

    async def _ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        from airflow.api_fastapi.main import app

        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://airflow", headers=self._headers, timeout=None) as client:  # noqa: S113
            return await client.request(method, f"/api/v2/{path}", **content)

    @staticmethod
    def _require(answer: httpx.Response) -> Any:
        """Return the answer's JSON.

        Raises:
            Problem: Airflow refuses the request, or could not do it now (503).
        """
        if answer.status_code < 400:
            return answer.json()
        if answer.status_code >= 500:
            raise Problem(503, "Airflow could not do this now; its log says why", retry_after_s=_COME_BACK_S)
        detail = answer.json().get("detail") if "json" in answer.headers.get("content-type", "") else None
        if answer.status_code == 404:
            raise Problem(
                503,
                "the DAG of predictions does not exist yet; is dags/nnunet_predictions.py in the DAGs folder?",
                retry_after_s=_COME_BACK_S,
            )
        raise Problem(answer.status_code, str(detail)[:500])
