"""The old name of :mod:`airflow_nnunet.pipelines.dag_builder`, for DAG files of version 0.1.0. It is removed in 0.3.0."""

from __future__ import annotations

import warnings

from airflow.exceptions import AirflowProviderDeprecationWarning

from airflow_nnunet.pipelines.dag_builder import (
    build_training_dag,
    check_datasets,
    datasets_folder,
    training_dags,
    training_task_group,
)

__all__ = ["build_training_dag", "check_datasets", "datasets_folder", "training_dags", "training_task_group"]

warnings.warn(
    "airflow_nnunet.dag_builder is removed in version 0.3.0; import its names from airflow_nnunet",
    AirflowProviderDeprecationWarning,
    stacklevel=2,
)
