"""Checks the prediction API for the doctor: its settings, its pool and its predictor servers."""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from airflow_nnunet.doctor.finding import Finding
from airflow_nnunet.prediction_api.servers import connect
from airflow_nnunet.prediction_api.tenants import all_tenants
from airflow_nnunet.settings.pool_names import PREDICTION_POOL
from nnunet_jobs.contract.failure import ConfigError


def examine_predictions(fix: str) -> Iterator[Finding]:
    """Yield findings about the prediction API. ``fix`` is the command that creates pools."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy.exc import SQLAlchemyError

    try:
        tenants = all_tenants()
    except ConfigError as error:
        yield Finding(topic="prediction API", ok=False, text=str(error))
        return
    try:
        with create_session() as session:
            there = Pool.get_pool(PREDICTION_POOL, session=session) is not None
    except SQLAlchemyError:
        return  # there is already a finding about the database
    if there:
        limits = f"{tenants[0].quota} unfinished requests for each team, {tenants[0].limit} in all, kept {tenants[0].keep_days} days"
        text = f"pool {PREDICTION_POOL} exists; {limits}"
    else:
        text = f"pool {PREDICTION_POOL} is missing, requests would wait forever; {fix}"
    yield Finding(topic="prediction API", ok=there, text=text)
    for tenant in tenants:
        for address in tenant.servers:
            said = _readiness(address)
            whose = f" of team {tenant.team}" if tenant.team else ""
            text = said if said.startswith("ready") else f"{said}; until it is ready, each request loads the model itself"
            yield Finding(topic=f"predictor server {address}{whose}", ok=said == "ready", text=text)


def _readiness(address: str) -> str:
    """Return ``ready``, with the server's own remarks if it has any, or the reason why it is not ready."""
    try:
        with connect(address) as client:
            return "; ".join(client.get("/readyz", timeout=5).text.split("\n")).strip("; ")[:300]
    except httpx.TransportError:
        return "does not answer"
