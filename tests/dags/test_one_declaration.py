"""One declaration a parameter: the operator's argument, the dataset file's field and the run's form follow the step's parameters."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from datetime import timedelta
from typing import Any

import pytest

from airflow_nnunet.jobs.retry import DEFAULT_RETRIES, DEFAULT_RETRY_DELAY, NnunetRetryPolicy
from airflow_nnunet.operators import (
    BatchPredictOperator,
    FindBestConfigOperator,
    NnunetOperator,
    PreprocessOperator,
    RegisterDatasetOperator,
    TrainFoldOperator,
)
from airflow_nnunet.pipelines.dag_builder import _default_args
from airflow_nnunet.pipelines.dataset_config import TrainingConfig
from airflow_nnunet.pipelines.dataset_sections import (
    DatasetSection,
    EvaluateSection,
    PredictSection,
    PreprocessSection,
    ResourcesSection,
    SelectSection,
    TrainSection,
)
from airflow_nnunet.pipelines.run_form import _fields
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.contract.steps.params import FindBestParams, PredictParams, PreprocessParams, RegisterParams, TrainParams

NONE_GIVEN = object()


class FindBestSections(SelectSection, EvaluateSection):
    """Two sections of a dataset file that one step takes."""


DECLARED: list[tuple[Any, Any, Any]] = [
    (RegisterParams, RegisterDatasetOperator, DatasetSection),
    (PreprocessParams, PreprocessOperator, PreprocessSection),
    (TrainParams, TrainFoldOperator, TrainSection),
    (FindBestParams, FindBestConfigOperator, FindBestSections),
    (PredictParams, BatchPredictOperator, PredictSection),
    (Resources, NnunetOperator, ResourcesSection),
]
# Names that are another one in the operator or in the dataset file.
RENAMED = {"dataset_id": "id", "gpus": "num_gpus"}
# Fields whose default in a dataset file is another one on purpose.
OF_THE_FILE = {
    ("train", "npz"): "true when ensembles are compared",
    ("predict", "cases"): "required by the operator",
    ("predict", "output"): "required by the operator; named after the dataset here",
    ("resources", "gpus"): "what a training uses; an operator's own default follows from its step",
}
# Parameters that the pipeline fills in, and that no dataset file says.
PLANNED = {
    "preprocess": {"datasets"},
    "train": {"dataset", "configuration", "fold", "version", "plans"},
    "find_best_config": {"dataset", "model", "configurations", "folds", "trainer", "plans", "recipe"},
    "predict": {"dataset", "model", "part", "folds", "overwrite"},
}


def step_of(params: Any) -> str:
    return str(getattr(params, "step", "resources"))


def defaults_of(params: Any) -> dict[str, Any]:
    found = {}
    for item in dataclasses.fields(params):
        if item.default_factory is not dataclasses.MISSING:
            found[item.name] = item.default_factory()
        else:
            found[item.name] = NONE_GIVEN if item.default is dataclasses.MISSING else item.default
    return found


@pytest.mark.parametrize(("params", "operator", "section"), DECLARED)
def test_an_operators_defaults_are_the_steps(params: Any, operator: Any, section: Any) -> None:
    arguments = inspect.signature(operator).parameters
    for name, default in defaults_of(params).items():
        argument = arguments[getattr(operator, "renamed", {}).get(name, RENAMED[name] if name == "gpus" else name)]
        own = NONE_GIVEN if argument.default is inspect.Parameter.empty else argument.default
        own = list(own) if isinstance(own, tuple) else own
        if name == "case_pattern" and own is None:
            continue  # None asks for the step's own
        # An argument's default cannot be a list or mapping, which all tasks would share.
        assert own == default or (own is None and default in ([], {})), f"{operator.__name__}.{argument.name}"


@pytest.mark.parametrize(("params", "operator", "section"), DECLARED)
def test_a_dataset_files_defaults_are_the_steps(params: Any, operator: Any, section: Any) -> None:
    step, contract = step_of(params), defaults_of(params)
    fields = {own: section.model_fields[RENAMED.get(own, own)] for own in contract if RENAMED.get(own, own) in section.model_fields}
    for name, field in fields.items():
        own = NONE_GIVEN if field.is_required() else field.default
        if (step, name) in OF_THE_FILE:
            assert own != contract[name], f"{step}.{name} is the same by now, so that it needs no exception"
        elif not (name == "case_pattern" and own is None):
            assert own == contract[name], f"{section.__name__}.{name}"
    assert set(contract) - set(fields) == PLANNED.get(step, set()), "a parameter of the step that nobody can set"
    unknown = set(section.model_fields) - {RENAMED.get(name, name) for name in contract}
    assert unknown == ({"folds"} if section is TrainSection else set()), "a field that no step knows"


@pytest.mark.parametrize(("params", "operator", "section"), DECLARED)
def test_a_parameters_meaning_is_told_everywhere(params: Any, operator: Any, section: Any) -> None:
    contract, own = inspect.getdoc(params) or "", f"{inspect.getdoc(operator)}\n{inspect.getdoc(NnunetOperator)}"
    for name in defaults_of(params):
        argument = getattr(operator, "renamed", {}).get(name, RENAMED[name] if name == "gpus" else name)
        assert re.search(rf"\b{name}\b", contract), f"{params.__name__}: {name} is not explained"
        assert re.search(rf"\b{argument}\b", own), f"{operator.__name__}: {argument} is not explained"
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}: {name} is not explained"


REQUIRED: dict[Any, dict[str, Any]] = {
    RegisterParams: {"dataset_id": 4, "name": "Hip", "source": "/in"},
    PreprocessParams: {"datasets": ["4"]},
    TrainParams: {"dataset": 4, "configuration": "2d", "fold": 0},
    FindBestParams: {"dataset": 4},
    PredictParams: {"dataset": 4, "cases": "holdout", "output": "/out"},
    Resources: {},
}


@pytest.mark.parametrize(("params", "operator", "section"), DECLARED)
def test_the_words_that_a_dataset_file_allows_are_the_steps(params: Any, operator: Any, section: Any) -> None:
    for name, field in section.model_fields.items():
        options = [field.annotation, *typing.get_args(field.annotation)]
        words = next((typing.get_args(option) for option in options if typing.get_origin(option) is typing.Literal), ())
        for word in words:
            params(**{**REQUIRED[params], **({"mapping": "table.csv"} if word == "csv" else {}), name: word})
        if words:
            with pytest.raises(ConfigError, match=f"{name}='none of these'"):
                params(**{**REQUIRED[params], name: "none of these"})


def test_the_forms_defaults_and_words_are_the_dataset_files() -> None:
    config = TrainingConfig.model_validate({"dataset": {"id": 4, "name": "Hippocampus", "source": "/data"}})
    form = _fields(config)
    assert form["configurations"].value == config.preprocess.configurations
    assert form["folds"].value == [str(fold) for fold in config.train_folds]
    for name in ("trainer", "epochs", "iterations", "pretrained"):
        assert form[name].value == TrainSection.model_fields[name].default, name
    assert form["promote"].value == config.select.promote
    assert set(form["promote"].schema["enum"]) == set(typing.get_args(SelectSection.model_fields["promote"].annotation))
    assert form["predict"].value == config.predict.cases
    assert set(form) == {"configurations", "folds", "trainer", "epochs", "iterations", "pretrained", "promote", "predict", "force"}
    assert all(param.description for param in form.values())


def test_retries_are_the_same_wherever_they_are_declared() -> None:
    arguments = inspect.signature(NnunetOperator).parameters
    assert arguments["retries"].default == TrainingConfig.model_fields["retries"].default == DEFAULT_RETRIES
    config = TrainingConfig.model_validate({"dataset": {"id": 4, "name": "Hippocampus", "source": "/data"}})
    given = _default_args(config)
    assert (given["retries"], given["retry_delay"]) == (DEFAULT_RETRIES, DEFAULT_RETRY_DELAY)
    assert arguments["retry_delay"].default == DEFAULT_RETRY_DELAY
    assert timedelta(seconds=inspect.signature(NnunetRetryPolicy).parameters["base"].default) == DEFAULT_RETRY_DELAY
    assert "three retries" in (inspect.getdoc(NnunetOperator) or "")
    assert DEFAULT_RETRIES == 3
