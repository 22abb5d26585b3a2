"""The pipeline as a task group in somebody's own DAG: it is a guest there."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from airflow.sdk import DAG, TaskGroup
from airflow.sdk.exceptions import ParamValidationError

from airflow_nnunet.jobs.retry import DEFAULT_RETRIES
from airflow_nnunet.pipelines.dag_builder import build_training_dag, training_task_group
from airflow_nnunet.pipelines.dataset_config import TrainingConfig
from airflow_nnunet.pipelines.run_form import RunSettings, form
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.results import PreprocessResult

STEPS = ("register", "run_settings", "has_work", "preprocess", "plan_folds", "train", "find_best", "plan_predictions", "predict")


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"dataset": {"id": 4, "name": "Hippocampus", "source": "/data"}} | changes)


def fields_of(dag: DAG, name: str, group: str = "nnunet") -> dict[str, Any]:
    return {step: getattr(dag.get_task(f"{group}.{step}"), name) for step in STEPS}


def test_default_args_of_the_host_win() -> None:
    host = {"owner": "etl", "retries": 7, "pool": "etl", "queue": "big", "priority_weight": 5, "execution_timeout": None}
    with DAG("mine", schedule=None, default_args=host) as dag:
        training_task_group(config(owner="radiology", retries=1, pool="theirs"))
        with TaskGroup("outer", default_args={"owner": "nights", "pool": "nights"}):
            training_task_group(config())
    for name, value in (("owner", "etl"), ("retries", 7), ("pool", "etl"), ("queue", "big"), ("priority_weight", 5)):
        assert fields_of(dag, name) == dict.fromkeys(STEPS, value), name
    for name, value in (("owner", "nights"), ("retries", 7), ("pool", "nights")):
        assert fields_of(dag, name, "outer.nnunet") == dict.fromkeys(STEPS, value), name


def test_where_the_host_says_nothing_the_configuration_holds() -> None:
    with DAG("mine", schedule=None) as dag:
        training_task_group(config(owner="radiology", retries=1, priority=3, pool="ours"))
        training_task_group(config(), "plain")
    for name, value in (("owner", "radiology"), ("retries", 1), ("priority_weight", 3), ("pool", "ours")):
        assert fields_of(dag, name) == dict.fromkeys(STEPS, value), name
    computing = {"train", "find_best", "predict"}
    assert fields_of(dag, "pool", "plain") == {step: "gpu" if step in computing else "default_pool" for step in STEPS}
    assert {step: task.retries for step, task in ((s, dag.get_task(f"plain.{s}")) for s in STEPS)} == dict.fromkeys(STEPS, DEFAULT_RETRIES)


def test_the_groups_params_are_named_after_it_and_the_hosts_own_mean_nothing() -> None:
    of = config()
    host = {"folds": 5, "force": "false", "epochs": "many", "configurations": 3, "predict": "somewhere"}
    assert RunSettings.of_run(of, host, "nnunet") == RunSettings.of_run(of, {}, "nnunet")
    chosen = {"a.nnunet.folds": "1, all", "a.nnunet.force": "false", "a.nnunet.epochs": "7", "a.nnunet.configurations": ["2d"]}
    settings = RunSettings.of_run(of, chosen, "a.nnunet")
    assert (settings.folds, settings.force, settings.train["epochs"], settings.configurations) == ([1, "all"], False, 7, ["2d"])
    assert RunSettings.of_run(of, {"nnunet.folds": 3, "nnunet.force": "True"}, "nnunet").folds == [3]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("folds", 5, r"nnunet\.folds=5: 5 is not a fold of the split; choose from 0 to 4 and 'all'"),
        ("folds", ["0", "x"], r"nnunet\.folds=.*'x' is not a fold"),
        ("configurations", ["3d_fulres"], r"nnunet\.configurations=.*'3d_fulres' is not planned; choose from 2d, 3d_fullres"),
        ("epochs", -3, r"nnunet\.epochs=-3: must be 1 or more"),
        ("iterations", "many", r"nnunet\.iterations='many': must be an integer"),
        ("force", "perhaps", r"nnunet\.force='perhaps': must be true or false"),
        ("promote", "maybe", r"nnunet\.promote='maybe': must be one of if_better, if_not_worse, ask, never, always"),
        ("predict", "incoming", r"nnunet\.predict='incoming': must be holdout, imagesTs, none or an absolute folder"),
        ("pretrained", "a/b.pth", r"nnunet\.pretrained='a/b\.pth': must be a model id or an absolute path"),
        ("trainer", "nnUNetTrainerr", r"nnunet\.trainer='nnUNetTrainerr': no such class"),
    ],
)
def test_a_wrong_param_of_a_host_without_the_form_is_named(field: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunSettings.of_run(config(), {f"nnunet.{field}": value}, "nnunet")


def test_a_task_without_the_result_of_the_one_before_says_so() -> None:
    dag: Any = build_training_dag(config(dag_id="x"))
    chosen = dag.get_task("run_settings").python_callable(params={})
    for name, results in (("has_work", ["register"]), ("plan_folds", ["preprocess"]), ("plan_predictions", ["register", None])):
        for before, settings in ((results[0], chosen), ("run_settings", None)):
            with pytest.raises(ConfigError, match=f"task {before} has no result in this DAG run; run it first"):
                dag.get_task(name).python_callable(*(None for _ in results), settings)


def test_the_form_is_read_by_one_task_and_a_task_that_is_cleared_later_plans_as_the_run_was_triggered() -> None:
    cascade = {"configurations": ["3d_lowres", "3d_cascade_fullres"]}
    preprocessed = PreprocessResult(dataset="d", version="v", plans="p", configurations=["3d_lowres"], folds=5, datasets=[]).to_json()
    before: Any = build_training_dag(config(dag_id="x", preprocess=cascade, train={"epochs": 9}))
    chosen = before.get_task("run_settings").python_callable(params={"folds": ["1"]})
    edited: Any = build_training_dag(config(dag_id="x", preprocess=cascade, train={"epochs": 1, "folds": [3]}))
    for dag in (before, edited):
        for name, configuration in (("plan_folds", "3d_lowres"), ("plan_cascade", "3d_cascade_fullres")):
            (fold,) = dag.get_task(name).python_callable(preprocessed, chosen)
            assert (fold["configuration"], fold["fold"], fold["epochs"]) == (configuration, 1, 9)
    for name in ("has_work", "plan_folds", "plan_cascade", "plan_predictions"):
        task = before.get_task(name)
        assert "run_settings" in task.upstream_task_ids
        assert "params" not in inspect.signature(task.python_callable).parameters
    assert before.get_task("has_work").downstream_task_ids.isdisjoint({"plan_predictions"}), "has_work skips what comes right behind it"
    assert before.get_task("run_settings").upstream_task_ids == set()


def test_the_form_refuses_when_a_run_is_triggered_what_would_fail_later() -> None:
    cascade = ["2d", "3d_lowres", "3d_cascade_fullres"]
    params = build_training_dag(config(dag_id="x", preprocess={"configurations": cascade})).params
    wrong: dict[str, list[Any]] = {
        "epochs": [-3, 0, "5"],
        "iterations": [-1],
        "trainer": ["nnUNetTrainerr", ""],
        "configurations": [["3d_fulres"], [], ["2d", "3d_cascade_fullres"], ["2d", "2d"]],
        "folds": [["9"], 5],
        "predict": ["incoming", "/data/{{ ds }}", ""],
        "pretrained": ["models/a.pth"],
        "force": ["false"],
    }
    for name, values in wrong.items():
        assert "minimum" not in params.get_param(name).schema, "Airflow's form would turn a smaller number into this one without a word"
        for value in values:
            with pytest.raises(ParamValidationError):
                params[name] = value
    for name, value in (("trainer", "nnUNetTrainer_5epochs"), ("predict", "/data/a b"), ("pretrained", "m1"), ("epochs", None)):
        params[name] = value
    params["configurations"] = ["3d_lowres", "3d_cascade_fullres"]


def test_the_form_of_a_group_goes_into_the_hosts_params() -> None:
    mine = {"folds": 5}
    of = config(train={"epochs": 3})
    with DAG("mine", schedule="@daily", params={**mine, **form(of, "nnunet")}) as dag:
        training_task_group(of)
    assert (dag.params["folds"], dag.params["nnunet.folds"], dag.params["nnunet.epochs"]) == (5, ["0", "1", "2", "3", "4"], 3)
    assert dag.params.get_param("nnunet.epochs").schema["section"] == "nnunet: How to train"
    assert RunSettings.of_run(of, dag.params.dump(), "nnunet").train["epochs"] == 3
