"""Builds a dataset's pipeline: a whole DAG, or a task group inside another DAG.

register, run_settings -> has_work -> preprocess -> plan_folds -> train (mapped) -> [train_cascade (mapped)] -> find_best
                                                                                       -> plan_predictions -> predict (mapped)

``run_settings`` reads the run's form once, and the tasks that plan get its result. A task that is cleared after the dataset file was
edited therefore keeps the values of its run's form.
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

from airflow_nnunet.jobs.retry import DEFAULT_RETRY_DELAY
from airflow_nnunet.operators import (
    BatchPredictOperator,
    FindBestConfigOperator,
    PreprocessOperator,
    RegisterDatasetOperator,
    TrainFoldOperator,
)
from airflow_nnunet.operators.base import DEFAULT_RETRY_POLICY
from airflow_nnunet.pipelines import planning
from airflow_nnunet.pipelines.dag_checks import build_checked
from airflow_nnunet.pipelines.dag_page import dataset_as_table
from airflow_nnunet.pipelines.dataset_config import CASCADE, DatasetConfigError, TrainingConfig, load_folder
from airflow_nnunet.pipelines.run_form import RunSettings, form
from airflow_nnunet.pipelines.schedules import PRESETS, make_timetable, zone_of
from airflow_nnunet.settings.airflow_names import fitting_tag
from airflow_nnunet.settings.project_files import comes_with_the_package
from airflow_nnunet.settings.resolver import resolve_config
from airflow_nnunet.settings.teams import load_teams
from nnunet_jobs.contract.steps.results import FindBestResult, PreprocessResult, RegisterResult
from nnunet_jobs.contract.storage.workspace import Workspace

log = logging.getLogger(__name__)

_START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
"""Start date of schedules that need one; cron expressions do not, see :func:`make_timetable`."""


def build_training_dag(config: TrainingConfig) -> DAG:
    """Return the whole pipeline of one dataset as a DAG named ``config.dag_id``, with a form of typed params.

    Only one run is active at a time, because a second one would only wait for the locks of the first.

    Raises:
        DatasetConfigError: ``config.dag_id`` is empty.
        ConfigError: There is no such team.
    """
    return _build(config.of_team(load_teams()), auto_register=True)


def _build(config: TrainingConfig, *, auto_register: bool) -> DAG:
    """Build the DAG of a configuration that already has its team's defaults.

    Args:
        auto_register: Whether Airflow registers the DAG with the parsed file although it is no global there. It does
            that even with an unfinished DAG.
    """
    if not config.dag_id:
        raise DatasetConfigError("dag_id is empty; set it when the configuration does not come from a file")
    cron = config.schedule not in (None, *PRESETS)
    dag = DAG(
        config.dag_id,
        description=config.description or f"nnU-Net on {config.dataset_name}, from the source folder to predictions",
        schedule=make_timetable(str(config.schedule), config.timezone) if cron else config.schedule,
        start_date=None if cron else _START,
        catchup=False,
        max_active_runs=1,
        tags={"nnunet", fitting_tag(config.dataset_name), *config.tags, *([f"team:{config.team}"] if config.team else [])},
        doc_md=dataset_as_table(config),
        default_args=_default_args(config),
        auto_register=auto_register,
    )
    dag.timezone = zone_of(config.timezone)
    with dag:
        _add_tasks(config)
    # This comes last, because every task would copy the params. The DAG's own setter is avoided, because it checks each
    # JSON schema against the metaschema, which takes half of the parsing time. The defaults are checked already.
    object.__setattr__(dag, "params", ParamsDict(form(config)))
    return dag


def training_task_group(config: TrainingConfig, group_id: str = "nnunet") -> TaskGroup:
    """Build the same pipeline as a task group, inside a ``with DAG(...)``.

    ``default_args`` of the DAG, or of the task group around this one, override the configuration: owner, retries, pool,
    queue, priority weight and all others. If they or the configuration name a pool, all tasks of the group use it.

    If the DAG has params ``<group_id>.<field>``, they are the form's fields.
    :func:`airflow_nnunet.pipelines.run_form.form` makes them::

        with DAG("mine", schedule=None, params={**mine, **form(config, "nnunet")}):
            training_task_group(config, "nnunet")

    Args:
        config: What to train. ``dag_id``, ``schedule`` and ``timezone`` are not used, because the DAG has its own.
        group_id: Name of the group.

    Raises:
        ConfigError: There is no such team, or the pool belongs to another team.
    """
    config = config.of_team(load_teams())
    host = _host_defaults()
    fields = {"owner": "owner", "retries": "retries", "pool": "pool", "queue": "queue", "priority_weight": "priority"}
    of_host = {field: host[name] for name, field in fields.items() if name in host}
    everywhere = of_host.get("pool") or (config.pool if "pool" in config.model_fields_set else None)
    config = config.model_copy(update=of_host)
    defaults: Any = {name: value for name, value in _default_args(config).items() if name not in host}
    group: TaskGroup = TaskGroup(group_id, tooltip=f"nnU-Net on {config.dataset_name}", default_args=defaults)
    with group:
        _add_tasks(config, group_id=group.group_id, pool=everywhere)
    return group


def _host_defaults() -> dict[str, Any]:
    """Return the default arguments that tasks get where a task group is being made."""
    from airflow.sdk.definitions._internal.contextmanager import DagContext, TaskGroupContext

    dag = DagContext.get_current()
    group = TaskGroupContext.get_current(dag)
    return {**(dag.default_args if dag else {}), **(group.default_args if group else {})}


def training_dags(folder: Path) -> dict[str, DAG]:
    """Build a DAG for each valid file of a folder. :func:`check_datasets` reports the others, in a DAG file of its own.

    Airflow drops every DAG of a file that has an import error, so an error must not be reported from the file with the
    DAGs.
    """
    built, errors = _build_folder(folder, thorough=False)
    for name, error in errors.items():
        log.error("dataset file %s is left out: %s", name, error)
    return built


def check_datasets(folder: Path) -> None:
    """Check every dataset file of a folder and every team's file: the fields, and all that Airflow checks in the DAG.

    Raises:
        DatasetConfigError: Files are wrong. The message has one line for each fault.
    """
    errors = [*_build_folder(folder, thorough=True)[1].values(), *load_teams().errors.values()]
    if not folder.is_dir() and conf.get("nnunet", "datasets", fallback=""):
        errors.append(f"[nnunet] datasets={str(folder)!r}: no such folder; create it, or correct this option")
    if errors:
        raise DatasetConfigError("\n".join(errors))


def _build_folder(folder: Path, *, thorough: bool) -> tuple[dict[str, DAG], dict[str, str]]:
    """Build the DAGs that Airflow will accept, by id, and return by file name why the others are left out."""
    loaded = load_folder(folder)
    built: dict[str, DAG] = {}
    errors = dict(loaded.errors)
    for name, config in loaded.configs.items():
        dag, refused = build_checked(lambda config=config: _build(config, auto_register=False), thorough=thorough)  # type: ignore[misc]
        if dag is None:
            errors[name] = f"{folder / name}: Airflow refuses its DAG {config.dag_id!r}: {refused}"
        else:
            built[dag.dag_id] = dag
    return built, errors


def datasets_folder(dag_file: str | Path) -> Path:
    """Return the folder of dataset files: option ``datasets`` of [nnunet], or ``include/datasets`` beside the DAG
    file's folder.

    Args:
        dag_file: ``__file__`` of the DAG file. For a file that comes with the package, the DAGs folder is used instead.
    """
    if chosen := conf.get("nnunet", "datasets", fallback=""):
        return Path(chosen)
    folder = Path(conf.get("core", "dags_folder")) if comes_with_the_package(Path(dag_file)) else Path(dag_file).resolve().parent
    return folder.parent / "include" / "datasets"


def _default_args(config: TrainingConfig) -> dict[str, Any]:
    return {
        "owner": config.owner,
        "retries": config.retries,
        "retry_delay": DEFAULT_RETRY_DELAY,
        "priority_weight": config.priority,
        "retry_policy": DEFAULT_RETRY_POLICY,  # planning tasks need not retry a wrong setting
        "weight_rule": "absolute",  # only the file's number decides in the pool, not the DAG's shape
    }


def _add_tasks(config: TrainingConfig, *, group_id: str | None = None, pool: str | None = None) -> None:
    """Add the pipeline's tasks to the DAG or group that is being built.

    Args:
        config: What to train.
        group_id: Full id of the group, with which the names of its params begin; None for a whole DAG.
        pool: Pool of every task; None uses ``config.pool`` for trainings and predictions only.
    """
    elsewhere: dict[str, Any] = {"pool": pool} if pool else {}
    where = {"nnunet_conn_id": config.nnunet_conn_id, "team": config.team, "deferrable": config.deferrable, "retries": config.retries}
    resources = config.resources.model_dump()
    # They are set here and not only in default_args, because the team's values would override those.
    computing = {**where, **resources, "pool": config.pool, "priority_weight": config.priority}
    computing |= {"queue": config.queue} if config.queue else {}
    light = {**where, **{name: resources[name] for name in ("cpus", "memory_mib", "hang_s", "grace_s")}, **elsewhere}

    # This is no part of has_work, which skips its direct downstream tasks when there is nothing to train: plan_predictions needs
    # the settings then too.
    @task(multiple_outputs=False, **elsewhere)
    def run_settings(params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what this run trains, selects and predicts: the dataset file, overridden by the form."""
        return RunSettings.of_run(config, params or {}, group_id).to_json()

    @task.short_circuit(multiple_outputs=True, ignore_downstream_trigger_rules=False, **elsewhere)
    def has_work(registered: Any, chosen: Any) -> dict[str, Any] | None:
        """Return what the training tasks need, or None if a model of this data and recipe exists already."""
        return planning.plan_training(
            config, planning.settings_of(chosen), planning.result_of(RegisterResult, registered, "register"), _workspace(config)
        )

    @task(multiple_outputs=False, **elsewhere)
    def plan_folds(preprocessed: Any, chosen: Any) -> list[dict[str, Any]]:
        """Return the folds to train, each as the fields of one TrainFoldOperator."""
        return planning.plan_folds(planning.settings_of(chosen), planning.result_of(PreprocessResult, preprocessed, "preprocess"))

    @task(multiple_outputs=False, **elsewhere)
    def plan_cascade(preprocessed: Any, chosen: Any) -> list[dict[str, Any]]:
        """Return the cascade's second stage, fold by fold."""
        return planning.plan_folds(
            planning.settings_of(chosen), planning.result_of(PreprocessResult, preprocessed, "preprocess"), cascade=True
        )

    @task(trigger_rule="none_failed", **elsewhere)
    def plan_predictions(registered: Any, best: Any, chosen: Any) -> list[dict[str, Any]]:
        """Return the parts to predict; the list is empty when everything is predicted."""
        found = None if best is None else FindBestResult.from_json(best)
        return planning.plan_predictions(
            config, planning.settings_of(chosen), planning.result_of(RegisterResult, registered, "register"), found, _workspace(config)
        )

    chosen: Any = run_settings()
    register = RegisterDatasetOperator(task_id="register", **config.register_fields(), **light)
    plan: Any = has_work(register.output, chosen)
    preprocess = PreprocessOperator(
        task_id="preprocess", datasets=[config.dataset_name], **config.preprocess.model_dump(), **light, multiple_outputs=True
    )
    plan >> preprocess
    preprocessed: Any = preprocess.output
    folds: Any = plan_folds(preprocessed, chosen)
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
        gate=config.select.gate,
        tolerance_mm=config.evaluate.tolerance_mm,
        recipe=plan["recipe"],
        # Every fold must have succeeded. A cascade without folds is skipped and does not count.
        trigger_rule="none_failed_min_one_success",
        **computing,
    )
    if CASCADE in config.preprocess.configurations:
        cascade = TrainFoldOperator.partial(task_id="train_cascade", dataset=config.dataset_name, **computing, **naming)
        second_stage: Any = plan_cascade(preprocessed, chosen)
        train >> cascade.expand_kwargs(second_stage) >> find_best
    train >> find_best
    parts: Any = plan_predictions(register.output, find_best.output, chosen)
    predicting = config.predict.model_dump(exclude={"cases", "output", "parts"})
    BatchPredictOperator.partial(
        task_id="predict",
        dataset=config.dataset_name,
        map_index_template="part {{ task.part }} of {{ task.parts }}",
        **predicting,
        **computing,
    ).expand_kwargs(parts)


def _workspace(config: TrainingConfig) -> Workspace:
    return resolve_config(config.nnunet_conn_id, team=config.team).workspace
