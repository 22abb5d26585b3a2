"""Checks dataset files for the doctor: those that make no DAG, and those whose pool does not exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_nnunet.doctor.finding import Finding
from nnunet_jobs.contract.failure import ConfigError, JobError

if TYPE_CHECKING:
    from airflow_nnunet.pipelines.dataset_config import TrainingConfig


def examine_datasets(sync: str) -> Iterator[Finding]:
    """Yield the dataset files that cannot be used, and those whose tasks would wait for a pool that Airflow does not
    have.

    Args:
        sync: Command that creates the pools of this package.
    """
    from airflow.models.pool import Pool
    from airflow.sdk.configuration import conf
    from airflow.utils.session import create_session
    from sqlalchemy.exc import SQLAlchemyError

    from airflow_nnunet.pipelines.dag_builder import datasets_folder
    from airflow_nnunet.pipelines.dataset_config import load_folder
    from airflow_nnunet.settings.pool_names import GPU_POOL

    try:
        loaded = load_folder(datasets_folder(Path(conf.get("core", "dags_folder"), "nnunet_training.py")))
    except ConfigError:
        return  # a folder of teams that this user may not read has a finding of its own
    for name, error in loaded.errors.items():
        yield Finding(topic=f"dataset file {name}", ok=False, text=error)
    for name, config in loaded.configs.items():
        yield from _paths(name, config)
    users: dict[str, list[str]] = {}
    for name, config in loaded.configs.items():
        if config.pool != GPU_POOL:  # this pool has a finding of its own
            users.setdefault(config.pool, []).append(name)
    try:
        with create_session() as session:
            missing = [pool for pool in users if Pool.get_pool(pool, session=session) is None]
    except SQLAlchemyError:
        return  # there is already a finding about the database
    for pool in missing:
        files = ", ".join(users[pool])
        text = f"missing, tasks of {files} would wait forever; {sync}, or create it: airflow pools set '{pool}' 1 'trainings'"
        yield Finding(topic=f"pool {pool}", ok=False, text=text)


def _paths(name: str, config: TrainingConfig) -> Iterator[Finding]:
    """Yield folders of a dataset file that its tasks may not read or write, before a run fails at night."""
    from airflow_nnunet.operators.fields import is_template
    from airflow_nnunet.pipelines.planning import check_prediction
    from airflow_nnunet.pipelines.run_form import RunSettings
    from airflow_nnunet.settings.resolver import resolve_config

    source = config.dataset.source
    try:
        workspace = resolve_config(config.nnunet_conn_id, team=config.team).workspace
        if isinstance(source, str) and not is_template(source):
            workspace.confine_input(source, field="dataset.source")
        check_prediction(config, RunSettings.of_run(config, {}), workspace)
    except (JobError, OSError) as error:
        yield Finding(topic=f"dataset file {name}", ok=False, text=str(error))
