"""The old name of :mod:`airflow_nnunet.pipelines.dataset_config`, for DAG files of version 0.1.0. Removed in 0.3.0."""

from __future__ import annotations

import warnings

from airflow.exceptions import AirflowProviderDeprecationWarning

from airflow_nnunet.pipelines.dataset_config import *  # noqa: F403  (all that its __all__ names)

warnings.warn(
    "airflow_nnunet.dataset_config is removed in version 0.3.0; import its names from airflow_nnunet",
    AirflowProviderDeprecationWarning,
    stacklevel=2,
)
