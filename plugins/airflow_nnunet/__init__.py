"""Airflow operators, triggers, DAGs and commands for nnU-Net. This package never imports torch, nnunetv2 or numpy.

The names in ``__all__`` are public. They keep their meaning within a major version, and users import them from here.
Each is loaded when it is first used, so that ``import airflow_nnunet`` alone does not even import Airflow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from airflow_nnunet.provider_info import __version__

if TYPE_CHECKING:
    from airflow_nnunet.backends import Backend, get_backend
    from airflow_nnunet.dicomweb.hook import DicomWebHook
    from airflow_nnunet.dicomweb.operators import DicomWebRetrieveOperator, DicomWebStoreOperator
    from airflow_nnunet.dicomweb.sensor import DicomWebStudySensor
    from airflow_nnunet.dicomweb.trigger import DicomWebStudyTrigger
    from airflow_nnunet.jobs.assets import dataset_asset, model_asset
    from airflow_nnunet.jobs.exceptions import NnunetJobError
    from airflow_nnunet.jobs.retry import NnunetRetryPolicy
    from airflow_nnunet.jobs.trigger import JobTrigger
    from airflow_nnunet.operators.base import NnunetOperator
    from airflow_nnunet.operators.find_best_config import FindBestConfigOperator
    from airflow_nnunet.operators.predict import BatchPredictOperator
    from airflow_nnunet.operators.preprocess import PreprocessOperator
    from airflow_nnunet.operators.register import RegisterDatasetOperator
    from airflow_nnunet.operators.train import TrainFoldOperator
    from airflow_nnunet.pipelines.dag_builder import (
        build_training_dag,
        check_datasets,
        datasets_folder,
        training_dags,
        training_task_group,
    )
    from airflow_nnunet.pipelines.dataset_config import DatasetConfigError, TrainingConfig, load_config
    from airflow_nnunet.pipelines.dataset_sections import (
        DatasetSection,
        EvaluateSection,
        PredictSection,
        PreprocessSection,
        ResourcesSection,
        SelectSection,
        TrainSection,
    )
    from airflow_nnunet.pipelines.model_dags import build_model_dags
    from airflow_nnunet.pipelines.planning import require_champion
    from airflow_nnunet.pipelines.run_form import form
    from airflow_nnunet.prediction_api.dags import build_prediction_dags
    from airflow_nnunet.settings.config import NnunetConfig
    from airflow_nnunet.settings.hook import NnunetHook

_MODULES = {
    "backends": ("Backend", "get_backend"),
    "dicomweb.hook": ("DicomWebHook",),
    "dicomweb.operators": ("DicomWebRetrieveOperator", "DicomWebStoreOperator"),
    "dicomweb.sensor": ("DicomWebStudySensor",),
    "dicomweb.trigger": ("DicomWebStudyTrigger",),
    "jobs.assets": ("dataset_asset", "model_asset"),
    "jobs.exceptions": ("NnunetJobError",),
    "jobs.retry": ("NnunetRetryPolicy",),
    "jobs.trigger": ("JobTrigger",),
    "operators.base": ("NnunetOperator",),
    "operators.find_best_config": ("FindBestConfigOperator",),
    "operators.predict": ("BatchPredictOperator",),
    "operators.preprocess": ("PreprocessOperator",),
    "operators.register": ("RegisterDatasetOperator",),
    "operators.train": ("TrainFoldOperator",),
    "pipelines.dag_builder": ("build_training_dag", "check_datasets", "datasets_folder", "training_dags", "training_task_group"),
    "pipelines.dataset_config": ("DatasetConfigError", "TrainingConfig", "load_config"),
    "pipelines.dataset_sections": (
        "DatasetSection", "EvaluateSection", "PredictSection", "PreprocessSection", "ResourcesSection", "SelectSection", "TrainSection",
    ),
    "pipelines.model_dags": ("build_model_dags",),
    "pipelines.planning": ("require_champion",),
    "pipelines.run_form": ("form",),
    "prediction_api.dags": ("build_prediction_dags",),
    "settings.config": ("NnunetConfig",),
    "settings.hook": ("NnunetHook",),
}  # fmt: skip
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Backend",
    "BatchPredictOperator",
    "DatasetConfigError",
    "DatasetSection",
    "DicomWebHook",
    "DicomWebRetrieveOperator",
    "DicomWebStoreOperator",
    "DicomWebStudySensor",
    "DicomWebStudyTrigger",
    "EvaluateSection",
    "FindBestConfigOperator",
    "JobTrigger",
    "NnunetConfig",
    "NnunetHook",
    "NnunetJobError",
    "NnunetOperator",
    "NnunetRetryPolicy",
    "PredictSection",
    "PreprocessOperator",
    "PreprocessSection",
    "RegisterDatasetOperator",
    "ResourcesSection",
    "SelectSection",
    "TrainFoldOperator",
    "TrainSection",
    "TrainingConfig",
    "__version__",
    "build_model_dags",
    "build_prediction_dags",
    "build_training_dag",
    "check_datasets",
    "dataset_asset",
    "datasets_folder",
    "form",
    "get_backend",
    "load_config",
    "model_asset",
    "require_champion",
    "training_dags",
    "training_task_group",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
