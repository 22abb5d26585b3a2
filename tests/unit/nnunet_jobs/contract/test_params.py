"""Step parameters: what is wrong is said with the field, the value and the fix."""

from __future__ import annotations

from typing import Any

import pytest

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.base import StepParams
from nnunet_jobs.contract.steps.params import STEPS, PredictParams, PreprocessParams, RegisterParams, TrainParams

GOOD: dict[type[StepParams], dict[str, Any]] = {
    RegisterParams: {"dataset_id": 4, "name": "Hippocampus", "source": "/data"},
    PreprocessParams: {"datasets": [4, "Dataset005_B"]},
    TrainParams: {"dataset": 4, "configuration": "2d", "fold": 0},
    STEPS["find_best_config"]: {"dataset": "4"},
    PredictParams: {"dataset": 4, "cases": "holdout", "output": "/out"},
}


@pytest.mark.parametrize("params", GOOD, ids=lambda params: params.step)
def test_json_round_trip(params: type[StepParams]) -> None:
    built = params.from_json(GOOD[params])
    assert params.from_json(built.to_json()) == built


@pytest.mark.parametrize(
    ("params", "change", "said"),
    [
        (RegisterParams, {"dataset_id": 0}, "dataset_id=0: must be between 1 and 99999"),
        (RegisterParams, {"dataset_id": True}, "dataset_id=True: must be an integer"),
        (RegisterParams, {"layuot": "auto"}, "did you mean 'layout'"),
        (RegisterParams, {"layout": "zip"}, "layout='zip'"),
        (RegisterParams, {"holdout_fraction": 1.0}, "less than 1"),
        (RegisterParams, {"case_pattern": "("}, "not a regular expression"),
        (RegisterParams, {"case_pattern": "x"}, r"\(\?P<case>"),
        (RegisterParams, {"group_pattern": "x"}, "captures the patient"),
        (PreprocessParams, {"datasets": []}, "at least one dataset"),
        (PreprocessParams, {"planner": "os.system"}, "class name"),
        (RegisterParams, {"label_rules": {"liver": ["("]}}, r"label_rules=.*'\(' is not a regular expression"),
        (RegisterParams, {"label_rules": {"threshold": 0}}, "above 0"),
        (RegisterParams, {"label_rules": {"lver": ["x"]}, "label_names": {"background": 0, "liver": 1}}, "'lver' is not a label"),
        (PredictParams, {"series": {"T1": {"description": "("}}}, "not a regular expression"),
        (PredictParams, {"segment_codes": {"liver": ["10200004", "SCT"]}}, "such as"),
        (PreprocessParams, {"folds": 1}, "2 or more"),
        (TrainParams, {"fold": "some"}, "or 'all'"),
        (TrainParams, {"epochs": 0}, "1 or more"),
        (TrainParams, {"initial_lr": float("nan")}, "must be a number or empty"),
        (TrainParams, {"trainer": "../evil"}, "class name"),
        (PredictParams, {"part": 2, "parts": 2}, "0 to 1"),
        (PredictParams, {"step_size": 0.0}, "more than 0"),
    ],
)
def test_bad_values_are_named_with_the_mend(params: type[StepParams], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        params.from_json(GOOD[params] | change)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match="configuration"):
        TrainParams.from_json({"dataset": 4, "fold": 0})


def test_a_fold_from_a_template_becomes_a_number() -> None:
    assert TrainParams.from_json(GOOD[TrainParams] | {"fold": "3"}).fold == 3
