"""Builds the DAGs that change a dataset's champion from the UI: one for each team, and one for datasets without a team."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_nnunet.jobs.assets import PROMOTED
from airflow_nnunet.jobs.retry import DEFAULT_RETRIES, DEFAULT_RETRY_DELAY
from airflow_nnunet.operators.base import DEFAULT_RETRY_POLICY
from airflow_nnunet.pipelines.dataset_config import TrainingConfig, load_folder, models_dag_id
from airflow_nnunet.pipelines.model_changes import ACTIONS, ModelChange, make_change

_DOC = """\
Trigger a run to change which model of a dataset predictions use, or whether runs may change it. The ledger of the dataset says
who triggered the run, and gives the reason. `airflow nnunet model list` shows the models.

| action | what happens |
|---|---|
| promote | the model becomes the champion |
| rollback | an earlier champion becomes the champion again, by default the one before; it is held until it is released |
| pin | the champion is held: no run promotes another model |
| release | runs may promote models again, after a rollback or a pin |
| retire | the model is never the champion again |
"""
_WORDS = {
    "promote": "Promote a model",
    "rollback": "Roll back to an earlier champion",
    "pin": "Pin the champion",
    "release": "Release the champion",
    "retire": "Retire a model",
}


def build_model_dags(folder: Path) -> dict[str, DAG]:
    """Build a DAG ``nnunet_models`` for the datasets of a folder without a team, and ``nnunet_models_<team>`` for each team's.

    A run can only name datasets of its DAG, so that a person who may trigger one team's DAG changes no other team's models.

    Args:
        folder: Folder of dataset files; files that are wrong are left out, and ``nnunet_dataset_files.py`` reports them.
    """
    teams: dict[str | None, dict[str, TrainingConfig]] = {}
    for config in load_folder(folder).configs.values():
        teams.setdefault(config.team, {}).setdefault(choice_of(config), config)
    dags = [_build(team, dict(sorted(configs.items()))) for team, configs in teams.items()]
    return {dag.dag_id: dag for dag in dags}


def choice_of(config: TrainingConfig) -> str:
    """Return what the form calls a dataset: its full name, and its connection where it has one of its own."""
    return f"{config.dataset_name}@{config.nnunet_conn_id}" if config.nnunet_conn_id else config.dataset_name


def _build(team: str | None, configs: Mapping[str, TrainingConfig]) -> DAG:
    with DAG(
        models_dag_id(team),
        description=f"Promote a model, roll back, pin, release or retire{f', team {team}' if team else ''}",
        schedule=None,
        catchup=False,
        is_paused_upon_creation=False,  # a rollback must not wait for somebody to unpause it
        tags={"nnunet", "model", *([f"team:{team}"] if team else [])},
        doc_md=_DOC,
        params=_form(list(configs)),
        auto_register=False,
    ) as dag:

        @task(
            outlets=[PROMOTED],
            retries=DEFAULT_RETRIES,
            retry_delay=DEFAULT_RETRY_DELAY,
            retry_policy=DEFAULT_RETRY_POLICY,
            multiple_outputs=False,
        )
        def change(params: Mapping[str, Any] | None = None) -> dict[str, Any]:
            """Change the champion as the form says, and return what changed."""
            given = params or {}
            config = configs[given["dataset"]]
            wanted = ModelChange(
                dataset=config.dataset_name, action=given["action"], model=given["model"] or None, reason=given["reason"].strip()
            )
            return make_change(wanted, get_current_context(), team=team, conn_id=config.nnunet_conn_id)

        change()
    return dag


def _form(datasets: list[str]) -> dict[str, Param]:
    return {
        "dataset": Param(type="string", enum=datasets, title="Dataset", description="Dataset whose models are changed."),
        "action": Param(type="string", enum=list(ACTIONS), values_display=_WORDS, title="Action", description="What to do."),
        "model": Param(
            None,
            type=["null", "string"],
            maxLength=100,
            title="Model",
            description="Model id. Promote and retire need one. Empty means the champion before (rollback) or the champion (pin).",
        ),
        "reason": Param(
            type="string",
            pattern=r"^[^\r\n]*\S[^\r\n]*$",
            maxLength=1000,
            title="Reason",
            description="One sentence for the ledger. Never write patient data here.",
        ),
    }
