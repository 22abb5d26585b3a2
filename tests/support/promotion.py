"""Models with cards, as selections leave them, for tests that promote them."""

from __future__ import annotations

from pathlib import Path

from nnunet_jobs.contract.storage.files import sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import Workspace

DATASET = "Dataset005_Phantom"


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
