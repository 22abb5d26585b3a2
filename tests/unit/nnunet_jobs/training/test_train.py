"""The training step end to end on small networks: results, overrides, recognition, stock tools, fine-tuning, cascade."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.workspace import Workspace
from support.training import DATASET, Warm, environment

pytestmark = pytest.mark.training


def test_a_fold_is_trained_validated_and_then_found_done(warm: Warm, phantom: Workspace) -> None:
    first = warm.train(phantom, epochs=3)
    result = first.result()
    assert (result["epochs"], result["resumed_from"], result["already_done"]) == (3, None, False)
    folder = Path(result["path"])
    assert folder == phantom.model_root(result["model"]) / DATASET / "nnUNetTrainer__nnUNetPlans__2d_micro" / "fold_0"
    assert set(result["dice_per_label"]) == {"anterior", "posterior"}
    assert result["dice"] == pytest.approx(read_json(folder / "validation" / "summary.json")["foreground_mean"]["Dice"])
    assert sorted(path.name for path in folder.glob("*.pth")) == ["checkpoint_best.pth", "checkpoint_final.pth"]
    assert not (folder / "progress.png").exists()
    assert {path.name for path in folder.parent.iterdir()} == {"fold_0", "plans.json", "dataset.json", "dataset_fingerprint.json"}
    splits = read_json(phantom.preprocessed_root(result["version"]) / DATASET / "splits_final.json")
    predicted = {path.name.removesuffix(".nii.gz") for path in (folder / "validation").glob("*.nii.gz")}
    assert predicted == set(splits[0]["val"])

    records = first.metrics("train")
    assert [record["done"] for record in records] == [1, 2, 3]
    assert set(records[0]) >= {"train_loss", "val_loss", "dice", "lr", "epoch_s", "eta_s"}
    assert first.metrics("validate")[-1]["done"] == first.metrics("validate")[-1]["total"] == 4

    found = warm.train(phantom, epochs=3).result()
    assert found == {**result, "already_done": True, "seconds": found["seconds"]}


def test_stock_nnunet_predicts_with_the_model_and_never_sees_our_package(warm: Warm, phantom: Workspace, tmp_path: Path) -> None:
    result = warm.train(phantom, epochs=1).result()
    image = next((Path(phantom.raw) / DATASET / "imagesTr").glob("*_0000.nii.gz"))
    code = """
import sys, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], (0,))
predictor.predict_from_files_sequential([[sys.argv[2]]], [sys.argv[3]])
assert predictor.allowed_mirroring_axes is None
assert not [name for name in sys.modules if name.startswith("nnunet_jobs")]
"""
    argv = [sys.executable, "-P", "-c", code, str(Path(result["path"]).parent), str(image), str(tmp_path / "case")]
    subprocess.run(argv, check=True, capture_output=True, env={**environment(), "PYTHONPATH": ""})
    assert (tmp_path / "case.nii.gz").stat().st_size > 0


def test_overrides_reach_the_checkpoint(warm: Warm, phantom: Workspace) -> None:
    adam = warm.read(warm.train(phantom, epochs=2, optimizer="adamw", initial_lr=0.003).result()["path"])
    assert adam == adam | {"adam": True, "mirroring": None, "epoch": 2, "trainer_name": "nnUNetTrainer", "logged": [2] * 8, "finite": True}
    assert adam["lr"] == pytest.approx([0.003, 0.003 * 0.5**0.9])  # nnU-Net's polynomial schedule
    own = warm.read(warm.train(phantom, epochs=1, optimizer=None, mirroring=None).result()["path"])
    assert own == own | {"adam": False, "mirroring": [0, 1]}
    assert own["lr"] == [0.01]


def test_any_trainer_class_of_nnunet_or_of_the_user(warm: Warm, phantom: Workspace) -> None:
    stock = warm.train(phantom, trainer="nnUNetTrainerNoMirroring", epochs=1, mirroring=None).result()
    assert warm.read(stock["path"])["mirroring"] is None
    assert Path(stock["path"]).parent.name == "nnUNetTrainerNoMirroring__nnUNetPlans__2d_micro"
    own = warm.train(phantom, trainer="NeverBetter", epochs=1).result()
    assert warm.read(own["path"])["trainer_name"] == "NeverBetter"
    failure = warm.train(phantom, trainer="nnUNetTrainerOfNobody").failure()
    assert failure.failure_class is FailureClass.CONFIG
    assert "nnUNetTrainerOfNobody" in failure.message


def test_training_stops_early_when_the_smoothed_dice_no_longer_rises(warm: Warm, phantom: Workspace) -> None:
    result = warm.train(phantom, trainer="NeverBetter", epochs=50, early_stop=3).result()
    assert result["epochs"] == 4
    assert warm.read(result["path"])["epoch"] == 4


def test_the_same_seed_gives_the_same_network(warm: Warm, phantom: Workspace) -> None:
    heads = []
    for npz in (False, True):  # both would be one model; the second is made anew after the first is gone
        result = warm.train(phantom, epochs=1, seed=7, npz=npz).result()
        heads.append(warm.read(result["path"])["heads"])
        Path(result["path"]).rename(phantom.results + f"/{npz}")
    assert heads[0] == heads[1]
    other = warm.train(phantom, epochs=1, seed=8).result()
    assert warm.read(other["path"])["heads"] != heads[0]


def test_probabilities_asked_for_later_are_made_without_training_again(warm: Warm, phantom: Workspace) -> None:
    plain = warm.train(phantom, epochs=1).result()
    final = (Path(plain["path"]) / "checkpoint_final.pth").read_bytes()
    (Path(plain["path"]) / "validation" / "of_an_old_split.nii.gz").write_bytes(b"")
    later = warm.train(phantom, epochs=1, npz=True)
    assert later.result()["already_done"] is False
    assert later.metrics("train") == []
    assert (Path(plain["path"]) / "checkpoint_final.pth").read_bytes() == final
    names = {path.suffix for path in (Path(plain["path"]) / "validation").iterdir()}
    assert names == {".gz", ".npz", ".pkl", ".json"}
    assert not (Path(plain["path"]) / "validation" / "of_an_old_split.nii.gz").exists()
    assert warm.train(phantom, epochs=1, npz=True).result()["already_done"] is True
    assert warm.train(phantom, epochs=1).result()["already_done"] is True


@pytest.mark.parametrize("harm", ["summary", "prediction", "checkpoint"])
def test_a_fold_whose_files_changed_is_not_taken_for_done(warm: Warm, phantom: Workspace, harm: str) -> None:
    result = warm.train(phantom, epochs=1).result()
    folder = Path(result["path"])
    if harm == "summary":
        (folder / "validation" / "summary.json").write_text("{}")
    elif harm == "prediction":
        next((folder / "validation").glob("*.nii.gz")).unlink()
    else:
        path = folder / "checkpoint_final.pth"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    repaired = warm.train(phantom, epochs=1)
    again = repaired.result()
    assert again["already_done"] is False
    assert again["epochs"] == 1
    assert warm.train(phantom, epochs=1).result()["already_done"] is True
    if harm == "checkpoint":  # the best one stood in
        assert "checkpoint_final.pth" in repaired.job.log.read_text()
        assert again["resumed_from"] == 1
    else:
        assert repaired.metrics("train") == []
        assert again["dice"] == result["dice"]


def test_fold_all_states_its_dice_as_one_on_training_cases(warm: Warm, phantom: Workspace) -> None:
    result = warm.train(phantom, fold="all", epochs=1).result()
    assert result["dice"] is None
    assert result["dice_per_label"] is None
    assert result["dice_on_training_cases"] == pytest.approx(
        read_json(Path(result["path"]) / "validation" / "summary.json")["foreground_mean"]["Dice"]
    )
    assert len(list((Path(result["path"]) / "validation").glob("*.nii.gz"))) == 8


def test_fine_tuning_takes_the_heads_too_where_labels_match(warm: Warm, phantom: Workspace) -> None:
    first = warm.train(phantom, epochs=2, seed=1).result()
    tuned = {"epochs": 1, "iterations": 1, "optimizer": "sgd", "initial_lr": 1e-9}  # too slow to move anything
    by_model = warm.train(phantom, pretrained=first["model"], **tuned)
    result = by_model.result()
    assert result["model"] != first["model"]
    assert warm.read(result["path"])["heads"] == pytest.approx(warm.read(first["path"])["heads"], abs=1e-4)
    kept = Path(phantom.input_roots[0]) / "pretrained.pth"
    kept.write_bytes((Path(first["path"]) / "checkpoint_final.pth").read_bytes())
    by_path = warm.train(phantom, pretrained=str(kept), **tuned).result()
    assert by_path["model"] not in (first["model"], result["model"])
    assert "Fine-tuning: 100.0% of the weights loaded" in by_model.job.log.read_text()
    other = warm.train(phantom, configuration="3d_low", pretrained=str(kept), **tuned).failure()
    assert other.failure_class is FailureClass.CONFIG
    assert "norms and biases would fit this network of 3d_low, and no convolution" in other.message
    assert not list(Path(phantom.results).glob(".versions/*/*/*3d_low/fold_0/checkpoint_*"))
    kept.unlink()


def test_a_cascade_waits_for_every_fold_of_its_first_stage(warm: Warm, phantom: Workspace) -> None:
    settings = {"epochs": 1, "iterations": 2}
    warm.train(phantom, configuration="3d_low", fold=0, **settings).result()
    early = warm.train(phantom, configuration="3d_high", fold=0, **settings).failure()
    assert early.failure_class is FailureClass.CONFIG
    assert "fold 1 of 3d_low" in early.message
    warm.train(phantom, configuration="3d_low", fold=1, **settings).result()
    result = warm.train(phantom, configuration="3d_high", fold=0, **settings).result()
    assert result["dice"] is not None
    assert warm.train(phantom, configuration="3d_low", fold=1, **settings).result()["model"] == result["model"]


def test_a_cascade_whose_input_was_lost_gets_it_from_the_fold_that_it_names(warm: Warm, phantom: Workspace) -> None:
    """A deleted or changed prediction for the next stage makes its fold incomplete, and only the validation runs again."""
    settings = {"epochs": 1, "iterations": 2}
    low = [warm.train(phantom, configuration="3d_low", fold=fold, **settings).result() for fold in (0, 1)]
    left = Path(low[0]["path"]).parent / "predicted_next_stage" / "3d_high"
    splits = read_json(phantom.preprocessed_root(low[0]["version"]) / DATASET / "splits_final.json")
    whole = {path.name: path.read_bytes() for path in left.iterdir()}
    assert set(whole) == {f"{case}.b2nd" for split in splits for case in split["val"]}
    assert {"phantom.b2nd", "phantom.001.b2nd", "phantom.1.2.b2nd"} < set(whole)
    harms: dict[int, Callable[[Path], object]] = {0: Path.unlink, 1: lambda path: os.truncate(path, path.stat().st_size // 2)}
    for fold, harm in harms.items():
        harm(left / f"{splits[fold]['val'][0]}.b2nd")
        refused = warm.train(phantom, configuration="3d_high", fold=0, **settings).failure()
        assert refused.failure_class is FailureClass.CONFIG
        assert f"train fold {fold} of 3d_low" in refused.message
        repair = warm.train(phantom, configuration="3d_low", fold=fold, **settings)
        assert repair.result()["already_done"] is False
        assert repair.metrics("train") == []
        assert {path.name: path.read_bytes() for path in left.iterdir()} == whole
    shutil.rmtree(left.parent)
    assert warm.validate(phantom, low[0], configuration="3d_low", fold=0, **settings).wait() == {"result": {}}
    assert warm.train(phantom, configuration="3d_low", fold=1, **settings).result()["already_done"] is False
    assert {path.name: path.read_bytes() for path in left.iterdir()} == whole
    assert warm.train(phantom, configuration="3d_high", fold=0, **settings).result()["dice"] is not None


def test_fold_all_of_a_first_stage_leaves_what_the_other_folds_predicted(warm: Warm, phantom: Workspace) -> None:
    """It was trained on every case: its own predictions would teach the next stage that the first is never wrong."""
    settings = {"epochs": 1, "iterations": 2, "configuration": "3d_low"}
    first = warm.train(phantom, fold=0, **settings).result()
    left = Path(first["path"]).parent / "predicted_next_stage" / "3d_high"
    of_fold_0 = {path.name: path.read_bytes() for path in left.iterdir()}
    assert len(of_fold_0) == 4
    warm.train(phantom, fold="all", **settings).result()
    assert {name: (left / name).read_bytes() for name in of_fold_0} == of_fold_0
    assert len(list(left.iterdir())) == 8
    warm.train(phantom, fold=1, **settings).result()
    for fold in (0, 1, "all"):
        assert warm.train(phantom, fold=fold, **settings).result()["already_done"] is True
    assert warm.train(phantom, **{**settings, "configuration": "3d_high"}, fold=1).result()["epochs"] == 1


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        ({"version": "0123456789abcdef"}, "which has: "),
        ({"configuration": "3d_huge"}, "which has: 2d"),
        ({"fold": 2}, "folds 0 to 1"),
        ({"plans": "OtherPlans"}, "which has: nnUNetPlans"),
        ({"configuration": "3d_fullres", "plans": "nnUNetPlans", "pretrained": "nosuchmodel"}, "nosuchmodel"),
        ({"pretrained": "/etc/passwd"}, "outside the allowed folders"),
    ],
)
def test_wrong_names_are_refused_with_those_that_exist(warm: Warm, phantom: Workspace, wrong: dict[str, object], fix: str) -> None:
    failure = warm.train(phantom, epochs=1, **wrong).failure()
    assert failure.failure_class is FailureClass.CONFIG
    assert fix in failure.message
    assert not list(Path(phantom.results).glob(".versions/*/*/*/fold_*"))


def test_two_jobs_for_one_fold_become_a_worker_and_a_waiter(warm: Warm, phantom: Workspace) -> None:
    both = [warm.train(phantom, epochs=2) for _ in range(2)]
    results = [training.result() for training in both]
    assert sorted(result["already_done"] for result in results) == [False, True]
    assert any(training.metrics("wait") for training in both)


def test_data_workers_train_the_same_way(warm: Warm, phantom: Workspace) -> None:
    assert warm.train(phantom, workers=2, epochs=1).result()["epochs"] == 1
