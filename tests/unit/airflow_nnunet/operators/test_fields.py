"""What templates render becomes what steps expect, or a clear error."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from airflow_nnunet.operators import (
    BatchPredictOperator,
    FindBestConfigOperator,
    NnunetOperator,
    PreprocessOperator,
    RegisterDatasetOperator,
    TrainFoldOperator,
)
from airflow_nnunet.operators.fields import coerce
from nnunet_jobs.contract.failure import ConfigError

OPERATORS = (RegisterDatasetOperator, PreprocessOperator, TrainFoldOperator, FindBestConfigOperator, BatchPredictOperator)
REQUIRED: dict[type[NnunetOperator], dict[str, Any]] = {
    RegisterDatasetOperator: {"dataset_id": 4, "name": "Hip", "source": "/in"},
    PreprocessOperator: {"datasets": ["4"]},
    TrainFoldOperator: {"dataset": 4, "configuration": "2d", "fold": 0},
    FindBestConfigOperator: {"dataset": 4},
    BatchPredictOperator: {"dataset": 4, "cases": "holdout", "output_folder": "/out"},
}


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("3", int, 3),
        (" 3 ", int | None, 3),
        (3.0, int, 3),
        ("", int | None, None),
        ("None", float | None, None),
        ("1e-3", float, 0.001),
        ("True", bool, True),
        ("off", bool | None, False),
        (42, str, "42"),
        ("2d, 3d_fullres", list[str], ["2d", "3d_fullres"]),
        ("['2d', '3d_lowres']", list[str], ["2d", "3d_lowres"]),
        ('["2d"]', list[str], ["2d"]),
        ("[0, 1]", list[int], [0, 1]),
        ("0,1,2", list[int], [0, 1, 2]),
        ((0, 1), list[int], [0, 1]),
        (4, list[str | int], [4]),
        ("004", str | int, "004"),
        ("4", str | int, 4),
        ("Dataset004_Hip", str | int, "Dataset004_Hip"),
        ("0", int | str, 0),
        ("all", int | str, "all"),
        ("{'0': 'CT'}", dict[str, str] | None, {"0": "CT"}),
        ('{"tumour": [1, 2]}', dict[str, Any] | None, {"tumour": [1, 2]}),
        ({0: "CT"}, dict[str, str], {"0": "CT"}),
        ("1.5", float | dict[str, float], 1.5),
        ('{"tumour": 2}', float | dict[str, float], {"tumour": 2}),
        ({"tumour": "2"}, float | dict[str, float], {"tumour": 2.0}),
        ("holdout", str | list[Any], "holdout"),
        ('["/in/a.nii.gz"]', str | list[Any], ["/in/a.nii.gz"]),
        (({"case": "a"},), str | list[Any], [{"case": "a"}]),
    ],
)
def test_rendered_values_take_the_fields_type(value: Any, hint: Any, expected: Any) -> None:
    assert coerce(value, hint, "field") == expected
    assert type(coerce(value, hint, "field")) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        ("three", int, "field='three': must be an integer"),
        ("2.5", int, "must be an integer"),
        ("maybe", bool, "true or false"),
        ("much", float | None, "a number"),
        ("[0, one]", list[int], "a list"),
        ("0;1", list[int], "must be an integer"),
        ("not a mapping", dict[str, str] | None, "a mapping"),
        ("[1]", dict[str, str], "a mapping"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(value: Any, hint: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        coerce(value, hint, "field")


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operators_arguments_and_defaults_are_the_steps(operator: type[NnunetOperator]) -> None:
    task = operator(task_id="t", **REQUIRED[operator])
    arguments = inspect.signature(operator).parameters
    given = {operator.renamed.get(name, name) for name in (item.name for item in dataclasses.fields(operator.params_class))}
    assert given <= set(arguments)
    assert given <= set(operator.template_fields)
    required = {task.renamed.get(item.name, item.name) for item in dataclasses.fields(operator.params_class)} & set(REQUIRED[operator])
    assert required == set(REQUIRED[operator])
    defaults = operator.params_class(**{k: v for k, v in task.step_params().to_json().items() if k in _required(operator)})
    assert task.step_params() == defaults


def _required(operator: type[NnunetOperator]) -> set[str]:
    missing = dataclasses.MISSING
    return {i.name for i in dataclasses.fields(operator.params_class) if i.default is missing and i.default_factory is missing}


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_argument_is_documented(operator: type[NnunetOperator]) -> None:
    text = inspect.getdoc(operator) or ""
    for name in inspect.signature(operator).parameters:
        if name not in ("kwargs", "pool", "map_index_template", "num_gpus"):
            assert name in text, f"{operator.__name__}: {name} is not documented"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optimizer": "adam"}, "optimizer='adam'"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": "ten"}, "epochs='ten'"),
        ({"fold": -1}, "fold=-1"),
        ({"trainer": "my trainer"}, "trainer='my trainer'"),
    ],
)
def test_a_wrong_constant_is_refused_when_the_dag_is_parsed_even_beside_templates(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainFoldOperator(task_id="t", **{**REQUIRED[TrainFoldOperator], "dataset": "{{ params.dataset }}", **fields})


def test_templates_are_not_judged_before_they_are_rendered() -> None:
    task = TrainFoldOperator(task_id="t", dataset=4, configuration="2d", fold="{{ params.fold }}", epochs="{{ params.epochs }}")
    task.fold, task.epochs = "2", "0"
    with pytest.raises(ConfigError, match="epochs=0"):
        task.step_params()
    task.epochs = "7"
    params = task.step_params().to_json()
    assert (params["fold"], params["epochs"]) == (2, 7)


def test_parts_are_judged_together() -> None:
    BatchPredictOperator(task_id="t", **REQUIRED[BatchPredictOperator], part=3, parts="{{ params.parts }}")
    with pytest.raises(ConfigError, match="part=3"):
        BatchPredictOperator(task_id="t", **REQUIRED[BatchPredictOperator], part=3, parts=2)


def test_resources_are_templates_too() -> None:
    task = TrainFoldOperator(task_id="t", **REQUIRED[TrainFoldOperator], num_gpus="2", gpu_memory_mib="8000", hang_s="60", memory_mib="")
    resources = task.resource_request()
    assert (resources.gpus, resources.gpu_memory_mib, resources.hang_s, resources.memory_mib) == (2, 8000, 60.0, None)
    task.device = "tpu"
    with pytest.raises(ConfigError, match="device='tpu'"):
        task.resource_request()
