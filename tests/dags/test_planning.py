"""What a run still has to do, decided from the workspace's files."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.pipelines.dataset_config import TrainingConfig
from airflow_nnunet.pipelines.planning import plan_folds, plan_predictions, plan_training
from airflow_nnunet.pipelines.run_form import RunSettings
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.results import FindBestResult, PreprocessResult, RegisterResult
from nnunet_jobs.contract.storage.files import repoint, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.model_output import ModelOutput
from nnunet_jobs.prediction.settings import Settings

DATASET = "Dataset004_Hippocampus"
REGISTERED = RegisterResult(
    dataset=DATASET, dataset_id=4, hash="a", training_hash="aaaa", train=9, holdout=1, test=0, added=10, changed=0, removed=0, withdrawn=0,
    already_done=False, path=f"/raw/{DATASET}", report=None,
)  # fmt: skip

PREPROCESSED = PreprocessResult(dataset=DATASET, version="v", plans="p", configurations=["2d"], folds=5, datasets=[])


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"dataset": {"id": 4, "name": "Hippocampus", "source": "/data"}} | changes)


def settings(of: TrainingConfig, **params: Any) -> RunSettings:
    return RunSettings.of_run(of, params)


def selected(model: str) -> FindBestResult:
    return FindBestResult(
        dataset=DATASET, model=model, choice="2d", cv_dice=0.8, cv_dice_postprocessed=0.8, holdout_dice=0.8, holdout_dice_per_label=None,
        promoted=False, is_champion=False, card="/card.json", already_done=False,
    )  # fmt: skip


def finish(workspace: Workspace, model: str, recipe: str, *, promote: bool) -> None:
    folder = workspace.model_root(model) / DATASET
    folder.mkdir(parents=True)
    write_json(folder / "model.json", {"recipe": recipe})
    if promote:
        repoint(workspace.champion_link(DATASET), folder)


def test_new_data_or_a_new_recipe_is_work_and_the_same_again_is_none(workspace: Workspace) -> None:
    known = config()
    plan = plan_training(known, settings(known), REGISTERED, workspace)
    assert plan is not None
    finish(workspace, "m1", plan["recipe"], promote=True)
    assert plan_training(known, settings(known), REGISTERED, workspace) is None
    assert plan_training(known, settings(known, epochs=3), REGISTERED, workspace)
    assert plan_training(known, settings(known), replace(REGISTERED, training_hash="bbbb"), workspace)
    assert plan_training(known, settings(known, force=True), REGISTERED, workspace)


def test_a_finished_model_that_should_be_promoted_is_work(workspace: Workspace) -> None:
    known = config()
    plan = plan_training(known, settings(known), REGISTERED, workspace)
    assert plan is not None
    finish(workspace, "m1", plan["recipe"], promote=False)
    assert plan_training(known, settings(known, promote="always"), REGISTERED, workspace)
    assert plan_training(known, settings(known, promote="if_better"), REGISTERED, workspace) is None


@pytest.mark.parametrize(
    ("predict", "field"),
    [
        ({"output": "/elsewhere"}, "predict.output"),
        ({"cases": "/elsewhere"}, "predict.cases"),
        ({"cases": "none", "output": "/elsewhere"}, None),
    ],
)
def test_what_prediction_may_not_read_or_write_is_refused_before_anything_is_trained(
    workspace: Workspace, predict: dict[str, str], field: str | None
) -> None:
    known = config(predict=predict)
    if field is None:
        assert plan_training(known, settings(known), REGISTERED, workspace)
    else:
        with pytest.raises(ConfigError, match=f"{field}='/elsewhere': outside the allowed folders"):
            plan_training(known, settings(known), REGISTERED, workspace)


def test_folds_of_the_form_become_numbers_and_the_cascade_comes_second() -> None:
    known = config(preprocess={"configurations": ["2d", "3d_lowres", "3d_cascade_fullres"]}, train={"epochs": 9})
    chosen = settings(known, folds=["0", "all"])
    first = plan_folds(chosen, PREPROCESSED)
    assert [(fold["configuration"], fold["fold"]) for fold in first] == [("2d", 0), ("2d", "all"), ("3d_lowres", 0), ("3d_lowres", "all")]
    assert {(fold["version"], fold["plans"], fold["epochs"], fold["npz"]) for fold in first} == {("v", "p", 9, True)}
    second = plan_folds(chosen, PREPROCESSED, cascade=True)
    assert [fold["configuration"] for fold in second] == ["3d_cascade_fullres"] * 2


def test_a_cascade_without_its_first_stage_is_refused() -> None:
    known = config(preprocess={"configurations": ["3d_lowres", "3d_cascade_fullres"]})
    with pytest.raises(ConfigError, match="starts from 3d_lowres; choose that too"):
        settings(known, configurations=["3d_cascade_fullres"])


def predicted(workspace: Workspace, known: TrainingConfig, cases: list[str], model: str, *, updated: str) -> None:
    card = workspace.model_root(model) / DATASET / "model.json"
    card.parent.mkdir(parents=True, exist_ok=True)
    write_json(card, {"schema": 1, "dataset": DATASET, "model": model, "hash": "a hash of its own"})
    output = Path(workspace.output_roots[0]) / DATASET / "holdout"
    model_output = ModelOutput(output, model, "a hash of its own")
    output = model_output.folder
    for case in cases:
        (output / f"{case}.nii.gz").touch()
    entries = {case: {"status": "predicted", "model": model, "file": f"{case}.nii.gz"} for case in cases}
    settings = asdict(Settings(**{name: getattr(known.predict, name) for name in Settings.__dataclass_fields__}))
    write_json(output / "predictions.json", {"model": model, "settings": settings, "updated": updated, "cases": entries})
    model_output.show_all()


def test_predictions_are_split_and_left_out_when_they_are_there(workspace: Workspace) -> None:
    known = config(predict={"parts": 4})
    cases = {name: {"split": split} for name, split in (("a", "train"), ("b", "holdout"), ("c", "holdout"), ("d", "test"))}
    manifest = {"cases": cases, "history": [{"at": "2026-01-02T00:00:00+00:00"}]}
    folder = workspace.raw_dataset(DATASET)
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", manifest)
    assert plan_predictions(known, settings(known), REGISTERED, None, workspace) == [], "no model, nothing to predict with"
    best = selected("m1")
    parts = plan_predictions(known, settings(known), REGISTERED, best, workspace)
    assert [(part["part"], part["parts"], part["model"], part["cases"]) for part in parts] == [
        (0, 2, "m1", "holdout"),
        (1, 2, "m1", "holdout"),
    ]
    assert plan_predictions(known, settings(known, predict="none"), REGISTERED, best, workspace) == []
    assert len(plan_predictions(known, settings(known, predict="imagesTs"), REGISTERED, best, workspace)) == 3
    predicted(workspace, known, ["b", "c"], "m1", updated="2026-01-03T00:00:00+00:00")
    assert plan_predictions(known, settings(known), REGISTERED, best, workspace) == []
    assert plan_predictions(known, settings(known), REGISTERED, selected("m2"), workspace), "another model"
    predicted(workspace, known, ["b", "c"], "m2", updated="2026-01-03T00:00:00+00:00")
    assert plan_predictions(known, settings(known), REGISTERED, best, workspace), "the link shows another model's predictions"
    predicted(workspace, known, ["b", "c"], "m1", updated="2026-01-01T00:00:00+00:00")
    assert plan_predictions(known, settings(known), REGISTERED, best, workspace), "the data changed since"
    predicted(workspace, known, ["b"], "m1", updated="2026-01-03T00:00:00+00:00")
    assert plan_predictions(known, settings(known), REGISTERED, best, workspace), "a case is missing"


def test_the_runs_settings_are_the_same_after_their_way_through_an_xcom() -> None:
    known = config(preprocess={"configurations": ["2d", "3d_fullres"]}, train={"epochs": 9})
    chosen = settings(known, folds=["0", "all"], epochs=None, force=True)
    there = json.loads(json.dumps(chosen.to_json()))
    assert RunSettings.from_json({**there, "added_later": 1}) == chosen
    with pytest.raises(ConfigError, match="settings of the run: promote is missing; clear the task run_settings"):
        RunSettings.from_json({name: value for name, value in there.items() if name != "promote"})
