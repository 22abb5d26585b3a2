"""The validation of a fold: nnU-Net's numbers, and its repair without training again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.training.fold_record import inspect_fold
from support.training import DATASET, Warm, environment

pytestmark = pytest.mark.training


def complete(phantom: Workspace, result: dict[str, Any], *, npz: bool = False) -> tuple[bool, tuple[str, ...]]:
    where = {name: result[name] for name in ("trainer", "plans", "configuration", "fold")}
    state = inspect_fold(phantom.model_root(result["model"]), phantom.preprocessed_root(result["version"]), DATASET, **where, npz=npz)
    return state.complete, state.reasons


def contents(folder: Path, ending: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(f"*{ending}")}


def test_the_summary_is_that_of_nnunets_own_evaluation(warm: Warm, phantom: Workspace, tmp_path: Path) -> None:
    result = warm.train(phantom, epochs=2).result()
    folder = Path(result["path"]) / "validation"
    truth = phantom.preprocessed_root(result["version"]) / DATASET / "gt_segmentations"
    code = """
import sys
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
if __name__ == "__main__":
    truth, folder, out = sys.argv[1:]
    compute_metrics_on_folder(truth, folder, out, SimpleITKIO(), ".nii.gz", [1, 2], None, num_processes=1, chill=True)
"""
    (tmp_path / "evaluate.py").write_text(code)
    argv = [sys.executable, str(tmp_path / "evaluate.py"), str(truth), str(folder), str(tmp_path / "summary.json")]
    subprocess.run(argv, env=environment(), check=True, capture_output=True, timeout=300)
    assert (tmp_path / "summary.json").read_text() == (folder / "summary.json").read_text()


def test_a_lost_validation_is_made_again_without_training(warm: Warm, phantom: Workspace) -> None:
    result = warm.train(phantom, epochs=2).result()
    fold = Path(result["path"])
    before, weights = contents(fold / "validation", ".nii.gz"), (fold / "checkpoint_final.pth").read_bytes()
    shutil.rmtree(fold / "validation")
    (fold / "fold.json").unlink()
    assert not complete(phantom, result)[0]
    repair = warm.validate(phantom, result, epochs=2)
    repair.result()
    assert complete(phantom, result) == (True, ())
    assert contents(fold / "validation", ".nii.gz") == before
    assert (fold / "checkpoint_final.pth").read_bytes() == weights
    assert not repair.metrics("train")


def test_a_harmed_prediction_is_made_again_and_only_that(warm: Warm, phantom: Workspace) -> None:
    result = warm.train(phantom, epochs=2).result()
    folder = Path(result["path"]) / "validation"
    before = contents(folder, ".nii.gz")
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}
    harmed = min(before)
    (folder / harmed).write_bytes(before[harmed][:-40])
    warm.validate(phantom, result, epochs=2).result()
    assert complete(phantom, result) == (True, ())
    assert contents(folder, ".nii.gz") == before
    again = [path.name for path in folder.glob("*.nii.gz") if path.stat().st_mtime_ns != times[path.name]]
    assert again == [harmed]


def test_probabilities_are_added_and_an_untouched_fold_is_left_alone(warm: Warm, phantom: Workspace) -> None:
    result = warm.train(phantom, epochs=1).result()
    fold = Path(result["path"])
    warm.validate(phantom, result, epochs=1, npz=True).result()
    assert complete(phantom, result, npz=True) == (True, ())
    assert len(contents(fold / "validation", ".npz")) == len(contents(fold / "validation", ".nii.gz")) == 4
    record = (fold / "fold.json").stat().st_mtime_ns
    warm.validate(phantom, result, epochs=1, npz=True).result()
    assert (fold / "fold.json").stat().st_mtime_ns == record
    assert json.dumps(read_json(fold / "fold.json")["dice"]) == json.dumps(result["dice"])


def test_a_fold_that_is_not_trained_is_refused_by_name(warm: Warm, phantom: Workspace) -> None:
    result = warm.train(phantom, epochs=1).result()
    failure = warm.validate(phantom, result, epochs=1, fold=1).failure()
    assert failure.failure_class is FailureClass.CONFIG
    assert "2d_micro fold 1" in failure.message
    assert "TrainFoldOperator" in failure.message
    shutil.rmtree(Path(result["path"]) / "validation")
    (Path(result["path"]) / "checkpoint_final.pth").write_bytes(b"harmed")
    assert warm.validate(phantom, result, epochs=1).failure().failure_class is FailureClass.CONFIG
