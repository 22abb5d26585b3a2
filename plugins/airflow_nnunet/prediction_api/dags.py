"""Builds the DAGs of the prediction API: one for each team, so that a run cannot choose its team, and the clean-up."""

from __future__ import annotations

from airflow.sdk import DAG, Param, task

from airflow_nnunet.prediction_api import TASK_ID
from airflow_nnunet.prediction_api.operator import RequestPredictOperator
from airflow_nnunet.prediction_api.retention import CLEANUP_DAG_ID, remove_old
from airflow_nnunet.prediction_api.tenants import dag_id_of
from airflow_nnunet.settings.teams import load_teams

_AT_ONCE = 1024  # only the queue's limits and the pool limit the runs, so a DAG's default of 16 must not
_DOC = "Requests of the prediction API. A run begins with POST /nnunet-api/predictions; marking it failed cancels the prediction."


def build_prediction_dags() -> list[DAG]:
    """Build the common DAG, one for each team with a valid file, and the clean-up."""
    return [build_prediction_dag(None), *(build_prediction_dag(team) for team in load_teams().configs), _cleanup()]


def build_prediction_dag(team: str | None) -> DAG:
    """Build the DAG whose runs are a team's requests."""
    with DAG(
        dag_id_of(team),
        description=f"Prediction API{f', team {team}' if team else ''}",
        schedule=None,
        catchup=False,
        max_active_runs=_AT_ONCE,
        max_active_tasks=_AT_ONCE,
        is_paused_upon_creation=False,
        tags={"nnunet", "prediction"},
        doc_md=_DOC,
        params={
            "dataset": Param(type="string", title="Dataset", maxLength=120),
            "model": Param(None, type=["null", "string"], title="Model", maxLength=100),
            "content": Param(type="string", title="Hash of the request", pattern="^[0-9a-f]{32}$"),
        },
    ) as dag:
        RequestPredictOperator(task_id=TASK_ID, team=team)
    return dag


def _cleanup() -> DAG:
    with DAG(
        CLEANUP_DAG_ID,
        description="Prediction API: removes requests older than predictions_keep_days, and uploads without a run",
        schedule="@daily",
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        tags={"nnunet", "prediction"},
    ) as dag:
        task(task_id="remove_old", retries=1)(remove_old)()
    return dag
