"""Keeps the old name of :mod:`nnunet_jobs.contract.steps.params` for programs written for version 0.1.0; removed in 0.3.0."""

from __future__ import annotations

import warnings

from nnunet_jobs.contract.steps.params import STEPS, FindBestParams, PredictParams, PreprocessParams, RegisterParams, TrainParams

__all__ = ["STEPS", "FindBestParams", "PredictParams", "PreprocessParams", "RegisterParams", "TrainParams"]

warnings.warn(
    "nnunet_jobs.contract.params is removed in version 0.3.0; import from nnunet_jobs.contract.steps.params",
    DeprecationWarning,
    stacklevel=2,
)
