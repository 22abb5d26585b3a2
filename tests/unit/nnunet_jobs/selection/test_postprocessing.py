"""Postprocessing of made-up segmentations against stock nnU-Net's; commands of cascades and ensembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.model import model_from_card, selection_hash
from nnunet_jobs.selection.commands import commands, member, stages
from nnunet_jobs.selection.trained import Trained
from support.selection import CUSTOM, DATASET, call, run_steps

LABELS = {"background": 0, "anterior": 1, "posterior": 2}
REGIONS = {"background": 0, "whole": [1, 2], "posterior": 2}
ONE_LABEL = {"background": 0, "organ": [1, 2]}


THREE_REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": [3]}


def test_the_same_steps_dice_and_files_as_stock_nnunet_but_where_the_mean_would_fall(workspace: Workspace, tmp_path: Path) -> None:
    from nnunet_jobs.dataset.phantom import write_phantom

    write_phantom(tmp_path / "Task05_Phantom", cases=3, seed=1)
    register = {"dataset_id": 5, "name": "Phantom", "source": str(tmp_path / "Task05_Phantom"), "holdout_fraction": 0.0}
    data = {"datasets": [5], "configurations": ["2d_micro"], "custom_configurations": CUSTOM, "folds": 2}
    run_steps(workspace, ("register", register), ("preprocess", data))
    trials: list[dict[str, Any]] = []
    for seed in range(2):
        for share in (0.0, 0.5):
            trials.append({"name": f"labels-{share}", "labels": LABELS, "seed": seed, "true_islands": share})
            trials.append({"name": f"regions-{share}", "labels": REGIONS, "order": [1, 2], "seed": seed, "true_islands": share})
    trials.append({"name": "harm", "labels": LABELS, "seed": 1, "true_islands": 1.0})
    trials.append({"name": "one", "labels": ONE_LABEL, "order": [1], "seed": 5, "true_islands": 0.0})
    absent = {"name": "absent", "labels": {**LABELS, "nowhere": 3}, "seed": 1, "true_islands": 0.5}
    hole = {"name": "hole", "labels": THREE_REGIONS, "order": [1, 2, 3], "seed": 1, "true_islands": 0.0, "inner_island": True}
    asked = {"workspace": workspace.to_json(), "scratch": str(tmp_path / "scratch"), "trials": [*trials, absent, hole]}
    *results, without_a_label, with_a_hole = call("postprocess_both", asked)
    for trial, result in zip(trials, results, strict=True):
        assert repr(result["ours"]) == repr(result["stock"]), trial
        assert all(result["same_files"]), trial
        assert result["same_pickle"], trial
        assert [step["labels_or_regions"] for step in result["steps"]] == [
            kwargs["labels_or_regions"] for kwargs in result["stock"]["postprocessing_kwargs"]
        ]
        assert result["declined"] == []
    assert {len(result["steps"]) for result in results} >= {0, 1, 2}, "the trials shall reach all branches"

    (same_volumes,) = (result for trial, result in zip(trials, results, strict=True) if (trial["name"], trial["seed"]) == ("labels-0.5", 1))
    assert without_a_label["steps"] == same_volumes["steps"], "a label that occurs nowhere decides nothing"
    for part in ("input_folder", "postprocessed"):
        assert without_a_label["ours"][part]["foreground_mean"]["Dice"] == same_volumes["ours"][part]["foreground_mean"]["Dice"]
        assert repr(without_a_label["ours"][part]["mean"]) == repr(without_a_label["stock"][part]["mean"])

    before, stock = (with_a_hole["stock"][part]["foreground_mean"]["Dice"] for part in ("input_folder", "postprocessed"))
    assert stock < before, "stock nnU-Net keeps the step that cuts holes into the outer regions"
    assert with_a_hole["steps"] == []
    assert with_a_hole["ours"]["postprocessed"]["foreground_mean"]["Dice"] == before
    (declined,) = with_a_hole["declined"]
    assert declined["labels_or_regions"] == [3]
    assert declined["dice"][0] < declined["dice"][1] == 1.0
    assert declined["mean_dice"] == [before, stock]


@pytest.fixture
def cascade(tmp_path: Path) -> Trained:
    """A model with a cascade in its plans; nothing of it is trained."""
    configurations = {
        "3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres"},
        "3d_lowres": {"data_identifier": "nnUNetPlans_3d_lowres", "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    write_json(tmp_path / "nnUNetPlans.json", {"configurations": configurations})
    return Trained(
        dataset=DATASET, model="m", version="v", trainer="nnUNetTrainer", plans="nnUNetPlans", root=tmp_path, preprocessed=tmp_path,
        configurations=("3d_fullres", "3d_cascade_fullres"), folds=(0, 1), settings={},
    )  # fmt: skip


def test_a_cascade_takes_its_low_resolution_stage_along(cascade: Trained) -> None:
    assert cascade.with_previous_stages() == ("3d_fullres", "3d_lowres", "3d_cascade_fullres")
    assert [cascade.needs_npz(name, ensembles=True) for name in cascade.with_previous_stages()] == [True, False, True]
    selection = {"members": [member(cascade, name) for name in cascade.configurations], "postprocessing": []}
    assert [stage["configuration"] for stage in stages(selection["members"])] == ["3d_fullres", "3d_lowres", "3d_cascade_fullres"]
    card = {"dataset": DATASET, "selection": selection, "files": {}, "hash": selection_hash(selection, {})}
    model = model_from_card(card, root=cascade.root, model="m")
    assert [stage.configuration for stage in model.stages()] == ["3d_fullres", "3d_lowres", "3d_cascade_fullres"]


def test_the_commands_of_a_cascade_predict_its_previous_stage_first(cascade: Trained) -> None:
    alone = commands(DATASET, {"members": [member(cascade, "3d_cascade_fullres")], "postprocessing": []})
    assert [argv[argv.index("-c") + 1] for argv in alone] == ["3d_lowres", "3d_cascade_fullres"]
    low = alone[0][alone[0].index("-o") + 1]
    assert alone[1][alone[1].index("-prev_stage_predictions") + 1] == low != "{output}"
    assert alone[1][alone[1].index("-o") + 1] == "{output}"
    members = [member(cascade, name) for name in cascade.configurations]
    steps = [{"function": "remove_all_but_largest_component_from_segmentation", "labels_or_regions": 1}]
    both = commands(DATASET, {"members": members, "postprocessing": steps})
    names = ["nnUNetv2_predict"] * 3 + ["nnUNetv2_ensemble", "nnUNetv2_apply_postprocessing"]
    assert [argv[0] for argv in both] == names
    outputs = [argv[argv.index("-o") + 1] for argv in both]
    assert len(set(outputs)) == 5
    assert outputs[-1] == "{output}"
    assert both[3][2:4] == [outputs[0], outputs[2]], "the low-resolution stage is no member"
    assert ["--save_probabilities" in argv for argv in both[:3]] == [True, False, True]
