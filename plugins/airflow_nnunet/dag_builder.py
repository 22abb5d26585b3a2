"""From a dataset's configuration to Airflow: a whole DAG, or a task group inside somebody's own DAG.

register -> has_work -> preprocess -> plan_folds -> train (mapped) -> [train_cascade (mapped)] -> find_best
                                                                         -> plan_predictions -> predict (mapped)
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, TaskGroup, task
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.param import ParamsDict

from airflow_nnunet import planning
from airflow_nnunet.config import NnunetConfig
from airflow_nnunet.dataset_config import CASCADE, DatasetConfigError, TrainingConfig, load_folder
from airflow_nnunet.operators import (
    BatchPredictOperator,
    FindBestConfigOperator,
    PreprocessOperator,
    RegisterDatasetOperator,
    TrainFoldOperator,
)
from airflow_nnunet.params_form import RunSettings, form
from airflow_nnunet.project_files import comes_with_the_package
from airflow_nnunet.teams import load_teams
from nnunet_jobs.contract.workspace import Workspace

log = logging.getLogger(__name__)

_NO_CATCHUP_START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


def build_training_dag(config: TrainingConfig) -> DAG:
    """The whole pipeline of one dataset as a DAG named ``config.dag_id``, with a form of typed params.

    One run at a time: a second one would only wait for the first one's content locks.

    Raises:
        DatasetConfigError: ``config.dag_id`` is empty.
        ConfigError: there is no such team.
    """
    config = config.of_team(load_teams())
    if not config.dag_id:
        raise DatasetConfigError("dag_id is empty; set it when the configuration does not come from a file")
    dag = DAG(
        config.dag_id,
        description=config.description or f"nnU-Net on {config.dataset_name}, from the source folder to predictions",
        schedule=config.schedule,
        start_date=_NO_CATCHUP_START,
        catchup=False,
        max_active_runs=1,
        tags={"nnunet", config.dataset_name, *config.tags, *([f"team:{config.team}"] if config.team else [])},
        doc_md=_documentation(config),
        default_args=_default_args(config),
    )
    with dag:
        _add_tasks(config)
    # Last, or every task takes a deep copy of them. Past DAG's own setter, which checks each field's JSON schema against the
    # metaschema: the defaults come from a checked config, and Airflow checks values again when a run is made. Half of parsing.
    object.__setattr__(dag, "params", ParamsDict(form(config)))
    return dag


def training_task_group(config: TrainingConfig, group_id: str = "nnunet") -> TaskGroup:
    """The same pipeline as a task group, to be called inside a ``with DAG(...)``.

    The form's fields are read from the DAG's params where it has them; ``airflow_nnunet.params_form.form`` makes them.
    """
    config = config.of_team(load_teams())
    defaults: Any = _default_args(config)
    group: TaskGroup = TaskGroup(group_id, tooltip=f"nnU-Net on {config.dataset_name}", default_args=defaults)
    with group:
        _add_tasks(config)
    return group


def training_dags(folder: Path) -> dict[str, DAG]:
    """A DAG for each good file of a folder; broken files are left to :func:`check_datasets`, which runs in a file of its own.

    Airflow drops every DAG of a file that has an import error, so one broken dataset must not be reported where the good ones live.
    """
    loaded = load_folder(folder)
    for name, error in loaded.errors.items():
        log.error("dataset file %s is left out: %s", name, error)
    return {str(config.dag_id): build_training_dag(config) for config in loaded.configs.values()}


def check_datasets(folder: Path) -> None:
    """Check every file of a folder, and every team's.

    Raises:
        DatasetConfigError: one or several are broken; the message has a line for each fault of each file.
    """
    errors = [*load_folder(folder).errors.values(), *load_teams().errors.values()]
    if errors:
        raise DatasetConfigError("\n".join(errors))


def datasets_folder(dag_file: str | Path) -> Path:
    """Where the dataset files are: option ``datasets`` of section [nnunet], else ``include/datasets`` beside the DAG file's folder.

    Args:
        dag_file: ``__file__`` of the DAG file. One that comes with the package is in nobody's folder: DAGs folder counts instead.
    """
    if chosen := conf.get("nnunet", "datasets", fallback=""):
        return Path(chosen)
    folder = Path(conf.get("core", "dags_folder")) if comes_with_the_package(Path(dag_file)) else Path(dag_file).resolve().parent
    return folder.parent / "include" / "datasets"


def _default_args(config: TrainingConfig) -> dict[str, Any]:
    return {
        "owner": config.owner,
        "retries": config.retries,
        "retry_delay": dt.timedelta(seconds=30),
        "priority_weight": config.priority,
        "weight_rule": "absolute",  # the file's number is what competes in the pool, not the DAG's shape
    }


def _add_tasks(config: TrainingConfig) -> None:
    where = {"nnunet_conn_id": config.nnunet_conn_id, "team": config.team, "deferrable": config.deferrable, "retries": config.retries}
    resources = config.resources.model_dump()
    # Named here and not by default_args alone, or the team's would come first.
    computing = {**where, **resources, "pool": config.pool, "priority_weight": config.priority}
    computing |= {"queue": config.queue} if config.queue else {}
    light = {**where, **{name: resources[name] for name in ("cpus", "memory_mib", "hang_s", "grace_s")}}

    @task.short_circuit(multiple_outputs=True, ignore_downstream_trigger_rules=False)
    def has_work(registered: Any, params: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Whether a model of this data and recipe is missing; if so, what the training tasks need to know."""
        return planning.plan_training(config, RunSettings.of_run(config, params or {}), registered, _workspace(config))

    @task
    def plan_folds(preprocessed: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The folds to train, each as the fields of one TrainFoldOperator."""
        return planning.plan_folds(RunSettings.of_run(config, params or {}), preprocessed)

    @task
    def plan_cascade(preprocessed: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The cascade's second stage, fold by fold."""
        return planning.plan_folds(RunSettings.of_run(config, params or {}), preprocessed, cascade=True)

    @task(trigger_rule="none_failed")
    def plan_predictions(registered: Any, best: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The parts to predict; none when everything is predicted."""
        settings = RunSettings.of_run(config, params or {})
        return planning.plan_predictions(config, settings, registered, best, _workspace(config))

    register = RegisterDatasetOperator(task_id="register", **config.register_fields(), **light)
    plan: Any = has_work(register.output)
    preprocess = PreprocessOperator(
        task_id="preprocess", datasets=[config.dataset_name], **config.preprocess.model_dump(), **light, multiple_outputs=True
    )
    plan >> preprocess
    preprocessed: Any = preprocess.output
    folds: Any = plan_folds(preprocessed)
    naming = {"map_index_template": "{{ task.configuration }} / fold {{ task.fold }}"}
    train = TrainFoldOperator.partial(task_id="train", dataset=config.dataset_name, **computing, **naming).expand_kwargs(folds)
    find_best = FindBestConfigOperator(
        task_id="find_best",
        dataset=config.dataset_name,
        model=f"{{{{ ti.xcom_pull(task_ids='{train.task_id}', map_indexes=0)['model'] }}}}",
        configurations=plan["configurations"],
        folds=plan["folds"],
        trainer=plan["trainer"],
        plans=preprocessed["plans"],
        ensembles=config.select.ensembles,
        repair=config.select.repair,
        promote=plan["promote"],
        recipe=plan["recipe"],
        # Every fold must have ended well; a cascade without folds is skipped and does not count.
        trigger_rule="none_failed_min_one_success",
        **computing,
    )
    if CASCADE in config.preprocess.configurations:
        cascade = TrainFoldOperator.partial(task_id="train_cascade", dataset=config.dataset_name, **computing, **naming)
        second_stage: Any = plan_cascade(preprocessed)
        train >> cascade.expand_kwargs(second_stage) >> find_best
    train >> find_best
    parts: Any = plan_predictions(register.output, find_best.output)
    predicting = config.predict.model_dump(exclude={"cases", "output", "parts"})
    BatchPredictOperator.partial(
        task_id="predict",
        dataset=config.dataset_name,
        map_index_template="part {{ task.part }} of {{ task.parts }}",
        **predicting,
        **computing,
    ).expand_kwargs(parts)


def _workspace(config: TrainingConfig) -> Workspace:
    return NnunetConfig.load(config.nnunet_conn_id, team=config.team).workspace


def _documentation(config: TrainingConfig) -> str:
    """The dataset file as the DAG's page shows it."""
    lines = [f"### {config.dataset_name}", "", "| setting | value |", "|---|---|"]
    for name, value in config.model_dump(exclude_none=True).items():
        fields = value if isinstance(value, dict) else {None: value}
        for field, item in fields.items():
            lines.append(f"| {name}{f'.{field}' if field else ''} | `{str(item).replace('|', chr(92) + '|')}` |")
    return "\n".join(lines)
