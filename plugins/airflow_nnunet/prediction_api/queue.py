"""Checks how full the queue is, by unfinished runs of all the API's DAGs and by uploads of all users."""

from __future__ import annotations

import logging

from starlette.requests import Request

from airflow_nnunet.prediction_api import DAG_ID
from airflow_nnunet.prediction_api.tenants import Tenant, all_tenants
from airflow_nnunet.prediction_api.uploads import in_progress, require_room
from nnunet_jobs.contract.http.problems import Problem
from nnunet_jobs.contract.http.uploads import MIB

log = logging.getLogger(__name__)
COME_BACK_S = 10


def count_unfinished() -> dict[str, int]:
    """Return the number of queued and running runs of each DAG."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from sqlalchemy import func, or_, select

    ours = or_(DagRun.dag_id == DAG_ID, DagRun.dag_id.startswith(f"{DAG_ID}_", autoescape=True))
    unfinished = DagRun.state.in_([DagRunState.QUEUED, DagRunState.RUNNING])
    with create_session(scoped=False) as session:
        rows = session.execute(select(DagRun.dag_id, func.count()).where(ours, unfinished).group_by(DagRun.dag_id)).all()
    return {row[0]: row[1] for row in rows}


def require_place(tenant: Tenant, request_id: str, size: int, *, new: bool) -> None:
    """Refuse a request if the team's quota is used up, the queue of all teams is full, or the disk has no space for it.

    Unfinished uploads count with their full size. Hold the queue's lock.

    Args:
        request_id: Id of the request; several uploads of one request count as one.
        size: Number of bytes that the request may write.
        new: Whether there is no run of that id. If there is one, the upload adds no prediction.

    Raises:
        Problem: 429, 503 or 507.
    """
    uploads = {each.dag_id: in_progress(each) for each in all_tenants(log.error)}
    require_room(tenant, size, [upload for found in uploads.values() for upload in found])
    if not new:
        return
    coming = {dag_id: {upload.id for upload in found if upload.new} - {request_id} for dag_id, found in uploads.items()}
    unfinished = count_unfinished()
    if unfinished.get(tenant.dag_id, 0) + len(coming[tenant.dag_id]) >= tenant.quota:
        raise Problem(429, f"Too many unfinished predictions: the limit for your team is {tenant.quota}", retry_after_s=COME_BACK_S)
    if sum(unfinished.values()) + sum(map(len, coming.values())) >= tenant.limit:
        raise Problem(503, "the queue is full", retry_after_s=COME_BACK_S)


def largest(request: Request, tenant: Tenant) -> int:
    """Return the number of bytes that a request may write: what a form declares, else the limit."""
    declared, most = request.headers.get("content-length", ""), tenant.upload_mib * MIB
    form = request.headers.get("content-type", "").lower().startswith("multipart/")
    return min(int(declared), most) if form and declared.isascii() and declared.isdigit() else most
