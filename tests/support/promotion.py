"""Models with cards, as selections leave them, for tests that promote them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_jobs.contract.storage.files import content_hash, read_json, sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import Workspace

DATASET = "Dataset005_Phantom"
_HELD_OUT = {"split": "holdout", "images": ["image"], "label": "label"}


def select(workspace: Workspace, *models: str) -> list[Path]:
    """Models with a card that lists one file. Returns their folders."""
    folders = []
    for model in models:
        root = workspace.model_root(model) / DATASET
        root.mkdir(parents=True)
        (root / "plans.json").write_text(model)
        card = {"schema": 1, "dataset": DATASET, "model": model, "files": {"plans.json": sha256_file(root / "plans.json")}}
        metrics = {"choice": "2d", "cv_dice_postprocessed": 0.8, "holdout_dice": None, "holdout_cases": 0}
        write_json(root / "model.json", {**card, "created": "2026-01-01T00:00:00+00:00", "metrics": metrics})
        folders.append(root)
    return folders


def hold_out(workspace: Workspace, dataset: str, cases: Sequence[str]) -> None:
    """The manifest of a dataset with these hold-out cases and one training case."""
    workspace.raw_dataset(dataset).mkdir(parents=True, exist_ok=True)
    known = dict.fromkeys(cases, _HELD_OUT) | {"train": {**_HELD_OUT, "split": "train"}}
    write_json(workspace.raw_dataset(dataset) / "manifest.json", {"cases": known, "history": []})


def keep_scores(workspace: Workspace, dataset: str, model: str, cases: Sequence[str], *, gain: float) -> None:
    """Scores of hold-out cases beside a model, as selections leave them: Dice of 0.8 and 0.7 and a gain, a little different by case."""
    root = workspace.model_root(model) / dataset
    write_json(root / "training_cases.json", {"schema": 1, "cases": {"train": "train"}})
    folder = root / "holdout" / ".scores"
    folder.mkdir(parents=True)
    key = content_hash([1, read_json(root / "model.json")["hash"], _HELD_OUT["images"], _HELD_OUT["label"]])
    for number, case in enumerate(cases):
        dice = {"left": 0.8 + gain + 0.001 * (number % 3), "right": 0.7 + gain}
        write_json(folder / f"{case}.score.json", {"schema": 1, "key": key, "files": {}, "dice": dice})
