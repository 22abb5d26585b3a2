"""Exports the parameters of the five steps: one frozen dataclass for each, which the operator and the step both check."""

from __future__ import annotations

from nnunet_jobs.contract.steps.base import StepParams
from nnunet_jobs.contract.steps.predict import FAST, HELD_OUT, PredictParams
from nnunet_jobs.contract.steps.register import LAYOUTS, RegisterParams
from nnunet_jobs.contract.steps.training import FindBestParams, PreprocessParams, TrainParams

__all__ = ["FAST", "HELD_OUT", "LAYOUTS", "STEPS", "FindBestParams", "PredictParams", "PreprocessParams", "RegisterParams", "TrainParams"]

STEPS: dict[str, type[StepParams]] = {
    params.step: params for params in (RegisterParams, PreprocessParams, TrainParams, FindBestParams, PredictParams)
}
