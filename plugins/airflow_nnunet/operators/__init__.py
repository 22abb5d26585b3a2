"""The five operators, one for each step. They define what runs; backends define where."""

from __future__ import annotations

from airflow_nnunet.operators.base import NnunetOperator
from airflow_nnunet.operators.find_best_config import FindBestConfigOperator
from airflow_nnunet.operators.predict import BatchPredictOperator
from airflow_nnunet.operators.preprocess import PreprocessOperator
from airflow_nnunet.operators.register import RegisterDatasetOperator
from airflow_nnunet.operators.train import TrainFoldOperator

__all__ = [
    "BatchPredictOperator",
    "FindBestConfigOperator",
    "NnunetOperator",
    "PreprocessOperator",
    "RegisterDatasetOperator",
    "TrainFoldOperator",
]
