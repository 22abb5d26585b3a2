"""Results of steps: read as they were written, by versions that know more or fewer keys; what is wrong with one is said by key."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any

import pytest

from airflow_nnunet.backends import get_backend, read_status
from airflow_nnunet.backends.fake import plausible_result
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.steps.base import StepResult
from nnunet_jobs.contract.steps.params import STEPS
from nnunet_jobs.contract.steps.results import RESULTS, FailedCase, FindBestResult, PredictResult, PreprocessResult, RegisterResult
from nnunet_jobs.contract.storage.workspace import Workspace

PARAMS: dict[str, list[dict[str, Any]]] = {
    "register": [{"dataset_id": 4, "name": "Hippocampus", "source": "/in"}],
    "preprocess": [{"datasets": [4, "Dataset005_Heart"]}, {"datasets": ["4"], "plans": "mine"}],
    "train": [{"dataset": 4, "configuration": "2d", "fold": 0}, {"dataset": "4", "configuration": "2d", "fold": "all"}],
    "find_best_config": [{"dataset": 4}, {"dataset": 4, "configurations": ["3d_fullres"], "promote": "never"}],
    "predict": [{"dataset": 4, "cases": "holdout", "output": "/out"}, {"dataset": 4, "cases": [], "output": "/out", "part": 1, "parts": 2}],
}
CASES = [(step, params) for step, several in PARAMS.items() for params in several]


def spec(workspace: Workspace, step: str, params: dict[str, Any]) -> JobSpec:
    return JobSpec(
        job_id=f"{step.replace('_', '-')}-00000001", step=step, params=STEPS[step].from_json(params).to_json(), workspace=workspace
    )


def registered(**changes: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("train", "holdout", "test", "added", "changed", "removed", "withdrawn"), 0)
    return {
        "dataset": "Dataset004_Hippocampus", "dataset_id": 4, "hash": "a", "training_hash": "b", **counts, "already_done": False,
        "path": "/raw/Dataset004_Hippocampus", "report": None, **changes,
    }  # fmt: skip


def test_every_step_has_a_result() -> None:
    assert RESULTS.keys() == STEPS.keys() == PARAMS.keys()


@pytest.mark.parametrize(("step", "params"), CASES)
def test_the_fake_backends_results_are_those_of_the_steps(workspace: Workspace, step: str, params: dict[str, Any]) -> None:
    job = get_backend("fake").submit(spec(workspace, step, params))
    result = read_status(job).unwrap()
    assert result == plausible_result(job.spec())
    assert RESULTS[step].from_json(result).to_json() == result
    assert list(result) == [item.name for item in fields(RESULTS[step])]


def test_the_fake_backend_names_each_dataset_and_a_choice_as_nnunet_does(workspace: Workspace) -> None:
    both = PreprocessResult.from_json(plausible_result(spec(workspace, "preprocess", PARAMS["preprocess"][0])))
    assert [item.dataset for item in both.datasets] == ["Dataset004_Fake", "Dataset005_Heart"]
    assert both.version == both.datasets[0].version
    best = FindBestResult.from_json(plausible_result(spec(workspace, "find_best_config", PARAMS["find_best_config"][1])))
    assert best.choice == "nnUNetTrainer__nnUNetPlans__3d_fullres"


def test_keys_of_a_later_version_are_ignored() -> None:
    assert RegisterResult.from_json(registered(colour="red")) == RegisterResult.from_json(registered())


@pytest.mark.parametrize("kind", RESULTS.values(), ids=list(RESULTS))
def test_a_missing_key_is_named_unless_it_has_a_default(workspace: Workspace, kind: type[StepResult]) -> None:
    whole = plausible_result(spec(workspace, kind.of, PARAMS[kind.of][0]))
    for item in fields(kind):
        rest = {name: value for name, value in whole.items() if name != item.name}
        if item.default is MISSING and item.default_factory is MISSING:
            with pytest.raises(ConfigError, match=f"^result of {kind.of}: {item.name} is missing; it has "):
                kind.from_json(rest)
        else:
            kind.from_json(rest)


def test_what_the_prediction_api_of_version_0_1_returned_is_read() -> None:
    old = {
        "dataset": "Dataset004_Hippocampus", "model": "m", "output": "/out", "predictions": "/out/predictions.json", "predicted": 1,
        "already_done": 0, "failed": [], "dice": None, "part": 0, "parts": 1,
    }  # fmt: skip
    found = PredictResult.from_json(old)
    assert (found.not_predicted, found.empty, found.flagged) == ([], False, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": "9"}, "result of register: train='9': must be "),
        ({"already_done": None}, "result of register: already_done=None: must be true or false"),
        ({"report": 3}, "result of register: report=3: must be "),
    ],
)
def test_a_value_of_another_type_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        RegisterResult.from_json(registered(**changes))


@pytest.mark.parametrize("data", [None, [], "done"])
def test_what_is_no_object_is_no_result(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"^result of register: result=.*: must be a mapping"):
        RegisterResult.from_json(data)


def test_objects_inside_a_result_are_types_too(workspace: Workspace) -> None:
    whole = plausible_result(spec(workspace, "predict", PARAMS["predict"][0]))
    whole |= {
        "failed": [{"case": "a", "reason": "truncated", "added_later": 1}],
        "dice": {"cases": 2, "mean": 0.5, "per_label": {"head": 0.5, "tail": None}},
    }
    found = PredictResult.from_json(json.loads(json.dumps(whole)))
    assert found.failed == [FailedCase(case="a", reason="truncated")]
    assert found.dice is not None
    assert found.dice.per_label == {"head": 0.5, "tail": None}
    with pytest.raises(ConfigError, match=r"^result of predict, a failed case: reason is missing; it has case"):
        PredictResult.from_json({**whole, "failed": [{"case": "a"}]})
    with pytest.raises(ConfigError, match=r"^result of predict: failed="):
        PredictResult.from_json({**whole, "failed": ["a"]})
