"""Names of models and states of folds, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import TrainParams
from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.training import fold as folds
from nnunet_jobs.training.fold_record import stamp, summary_dice, unchanged
from support.training import environment

PLANS = {
    "configurations": {
        "2d": {"data_identifier": "nnUNetPlans_2d", "batch_size": 12},
        "2d_tiny": {"inherits_from": "2d", "batch_size": 2},
    }
}


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A preprocessed version's dataset folder, as far as the state of a fold asks."""
    folder = tmp_path / "version" / "Dataset001_Any"
    folder.mkdir(parents=True)
    write_json(folder / "nnUNetPlans.json", PLANS)
    write_json(folder / "dataset.json", {"labels": {"background": 0, "a": 1, "both": [1, 2]}, "file_ending": ".nii.gz"})
    write_json(folder / "splits_final.json", [{"train": ["c", "b"], "val": ["a"]}, {"train": ["a", "b"], "val": ["c"]}])
    return folder


def params(**values: Any) -> TrainParams:
    return TrainParams(**{"dataset": 1, "configuration": "2d", "fold": 0, **values})


def test_a_models_name_follows_what_changes_its_weights_and_nothing_else() -> None:
    name = folds.model_id(params(), "v")
    same = ({"fold": 3}, {"configuration": "3d_fullres"}, {"npz": True}, {"checkpoint_every": 9}, {"plots": True}, {"dataset": "1"})
    assert {folds.model_id(params(**change), "v") for change in same} == {name}
    changes: tuple[dict[str, Any], ...] = (
        {"epochs": 2}, {"iterations": 3}, {"val_iterations": 3}, {"optimizer": "sgd"}, {"initial_lr": 0.1}, {"mirroring": False},
        {"early_stop": 5}, {"seed": 1}, {"trainer": "Other"}, {"plans": "OtherPlans"},
    )  # fmt: skip
    names = [folds.model_id(params(**change), "v") for change in changes]
    names += [folds.model_id(params(), "w"), folds.model_id(params(), "v", pretrained_sha256="x")]
    names += [folds.model_id(params(), "v", trainer_sha256="x")]
    assert len({name, *names}) == len(names) + 1


def test_a_users_trainer_is_known_by_its_source_and_a_stock_one_by_nnunets_version(tmp_path: Path) -> None:
    below = tmp_path / "mine"
    below.mkdir()
    (below / "other.py").write_text("class MyTrainer:\n    pass\n\n\nclass nnUNetTrainer:\n    pass\n")
    assert folds.trainer_source("MyTrainer", [str(tmp_path)]) == below / "other.py"
    assert folds.trainer_source("nnUNetTrainer", [str(tmp_path)]) is None
    with pytest.raises(ConfigError, match="trainer='MyTrain'"):
        folds.trainer_source("MyTrain", [str(tmp_path)])


def test_configurations_inherit(version: Path) -> None:
    assert folds.configuration_entry(version, "nnUNetPlans", "2d_tiny") == {
        "data_identifier": "nnUNetPlans_2d", "batch_size": 2, "inherits_from": "2d",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="which has: 2d, 2d_tiny"):
        folds.configuration_entry(version, "nnUNetPlans", "3d_fullres")
    with pytest.raises(ConfigError, match="which has: nnUNetPlans"):
        folds.configuration_entry(version, "Others", "2d")


def test_a_fold_beyond_the_splits_is_refused_where_nnunet_would_invent_one(version: Path) -> None:
    assert folds.fold_cases(version, "nnUNetPlans_2d", 1) == (["a", "b"], ["c"])
    with pytest.raises(ConfigError, match="folds 0 to 1"):
        folds.fold_cases(version, "nnUNetPlans_2d", 2)


def test_the_inputs_fingerprint_moves_with_plans_labels_splits_and_cases(version: Path) -> None:
    seen = {folds.inputs_hash(version, plans="nnUNetPlans", configuration="2d", fold=0)}
    for path, content in (
        ("nnUNetPlans.json", {"configurations": {**PLANS["configurations"], "more": {}}}),
        ("dataset.json", {"labels": {"background": 0, "b": 1}, "file_ending": ".nii.gz"}),
        ("splits_final.json", [{"train": ["b"], "val": ["a"]}]),
        ("version.json", {"cases": {"nnUNetPlans_2d": {"a": "key"}}}),
    ):
        write_json(version / path, content)
        seen.add(folds.inputs_hash(version, plans="nnUNetPlans", configuration="2d", fold=0))
    assert len(seen) == 5


def test_a_stamp_knows_a_file_again_also_after_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    stamped = stamp(path)
    path.touch()
    assert unchanged(path, stamped)
    path.write_bytes(b"CONTENT")
    assert not unchanged(path, stamped)
    path.unlink()
    assert not unchanged(path, stamped)


def test_dice_by_name_of_label_and_region_and_no_number_for_none() -> None:
    summary = {"foreground_mean": {"Dice": 0.5}, "mean": {"1": {"Dice": float("nan")}, "(1, 2)": {"Dice": 0.5}}}
    assert summary_dice(summary, {"background": 0, "a": 1, "both": [1, 2]}) == (0.5, {"a": None, "both": 0.5})


def test_an_untrained_fold_is_incomplete_and_asking_needs_no_torch(version: Path, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from nnunet_jobs.training.fold_record import inspect_fold
state = inspect_fold(Path(sys.argv[1]), Path(sys.argv[2]), "Dataset001_Any", trainer="T", plans="nnUNetPlans", configuration="2d", fold=0)
assert not state.complete and state.reasons == ("not trained",), state
assert not {"torch", "nnunetv2"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(version.parent)], check=True, env=environment())
