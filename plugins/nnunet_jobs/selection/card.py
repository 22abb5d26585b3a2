"""The model card: what was selected, from what, how good it is, and the same prediction with stock commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.storage.files import read_json, sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import FINAL_CHECKPOINT, MODEL_CARD
from nnunet_jobs.prediction.model import SelectedModel, model_from_card, selection_hash
from nnunet_jobs.registry.fitness import differing
from nnunet_jobs.selection.commands import PLACEHOLDERS, commands, stages
from nnunet_jobs.selection.trained import Trained

SCHEMA = 1
_NOT_VALIDATED = (
    "Without an honest validation: trained on all training cases (fold 'all') and taken as it is, without a cross-validation. Only the "
    "hold-out, where there is one, says how good it is."
)
_PACKAGES = ("airflow-provider-nnunet", "nnunetv2", "torch")


def predicting_files(trained: Trained, members: Sequence[Mapping[str, Any]], context: StepContext) -> dict[str, str]:
    """Return the sha256 of every file that a prediction reads, by path below the model's folder."""
    files = {}
    for stage in stages(members):
        folder, folds = trained.folder(stage["configuration"]), [*stage["folds"], *stage.get("further_folds", ())]
        paths = [folder / "plans.json", folder / "dataset.json", *(folder / f"fold_{fold}" / FINAL_CHECKPOINT for fold in folds)]
        for path in paths:
            files[path.relative_to(trained.root).as_posix()] = sha256_file(path)
            context.beat()
    return files


def make_card(
    trained: Trained, *, selection: Mapping[str, Any], files: Mapping[str, str], recipe: str | None, inputs: str
) -> dict[str, Any]:
    """Make the card without its metrics. ``inputs`` is the hash of all that the selection was made from."""
    described = read_json(trained.preprocessed.parent / trained.dataset / "version.json")
    return {
        "schema": SCHEMA,
        "dataset": trained.dataset,
        "model": trained.model,
        "version": trained.version,
        "dataset_hash": described["dataset_hash"],
        "training_hash": described["training_hash"],
        "plans_hash": described["plans_hash"],
        "recipe": recipe,
        "inputs": inputs,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "validation": {"cross_validated": trained.cross_validated, "note": "" if trained.cross_validated else _NOT_VALIDATED},
        "selection": dict(selection),
        "training": trained.settings,
        "versions": {**{name: _installed(name) for name in _PACKAGES}, "python": python_version()},
        "placeholders": PLACEHOLDERS,
        "commands": commands(trained.dataset, selection),
        "files": dict(files),
        "hash": selection_hash(selection, files),
    }


def finished_card(trained: Trained, inputs: str) -> dict[str, Any] | None:
    """Return the model's card if it was made from the same inputs and every file that it lists is unchanged."""
    path = trained.root / MODEL_CARD
    if not path.is_file():
        return None
    card: dict[str, Any] = read_json(path)
    if card.get("schema") != SCHEMA or card.get("inputs") != inputs or differing(card, trained.root):
        return None
    return card


def selected(card: Mapping[str, Any], root: Path) -> SelectedModel:
    """Return the selected model for the predictor, from a card that may not be written yet."""
    return model_from_card(card, root=root, model=str(card["model"]))


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # used as a plain folder, without pip
        return None


def write_card(trained: Trained, card: Mapping[str, Any]) -> Path:
    """Write the card, last and by rename."""
    path = trained.root / MODEL_CARD
    write_json(path, card)
    return path
