"""The old name of :mod:`airflow_nnunet.pipelines.dataset_config`, for DAG files of version 0.1.0. Removed in 0.3.0."""

from __future__ import annotations

import warnings

from airflow.exceptions import AirflowProviderDeprecationWarning

from airflow_nnunet.pipelines.dataset_config import (
    CASCADE,
    LOW_RESOLUTION,
    DatasetConfigError,
    DatasetSection,
    Fold,
    Loaded,
    PredictSection,
    PreprocessSection,
    ResourcesSection,
    SelectSection,
    TrainingConfig,
    TrainSection,
    load_config,
    load_folder,
)

__all__ = [
    "CASCADE",
    "LOW_RESOLUTION",
    "DatasetConfigError",
    "DatasetSection",
    "Fold",
    "Loaded",
    "PredictSection",
    "PreprocessSection",
    "ResourcesSection",
    "SelectSection",
    "TrainSection",
    "TrainingConfig",
    "load_config",
    "load_folder",
]

warnings.warn(
    "airflow_nnunet.dataset_config is removed in version 0.3.0; import its names from airflow_nnunet",
    AirflowProviderDeprecationWarning,
    stacklevel=2,
)
