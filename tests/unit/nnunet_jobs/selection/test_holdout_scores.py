"""Kept hold-out scores: what is removed, and what is not scored. Predictions are in test_find_best.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.model import SelectedModel
from nnunet_jobs.selection.holdout import Holdout
from nnunet_jobs.selection.holdout_scores import evaluate, scores
from support.selection import context

DATASET = "Dataset005_Phantom"


@pytest.fixture
def model(workspace: Workspace) -> SelectedModel:
    root = workspace.model_root("model") / DATASET
    (root / "holdout" / ".scores").mkdir(parents=True)
    return SelectedModel(dataset=DATASET, model="model", hash="hash", root=root, members=(), files={})


def test_nothing_stays_of_cases_that_are_no_holdout_any_more(workspace: Workspace, model: SelectedModel) -> None:
    """Also of a case that an attempt predicted before it was killed, and of the last case."""
    folder = model.root / "holdout"
    for name in ("scored", "killed"):
        (folder / f"{name}.nii.gz").write_bytes(b"segmentation")
    write_json(folder / ".scores" / "scored.score.json", {})
    assert evaluate(model, Holdout(cases={}, raw=Path(workspace.raw), ending=".nii.gz"), context(workspace)) is None
    assert [path.name for path in folder.rglob("*")] == [".scores"]


def test_a_case_whose_files_are_not_those_registered_is_not_scored(workspace: Workspace, model: SelectedModel) -> None:
    raw = workspace.raw_dataset(DATASET)
    for name in ("imagesTs/case_0000.nii.gz", "labelsTs/case.nii.gz"):
        (raw / name).parent.mkdir(parents=True)
        (raw / name).write_bytes(b"changed")
    held = Holdout(cases={"case": {"images": ["registered"], "label": "registered"}}, raw=raw, ending=".nii.gz")
    with pytest.raises(DataError, match="not those registered"):
        scores(model, held, context(workspace))
