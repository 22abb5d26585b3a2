"""The model card, and promotion: repointing the champion's link to a model whose files are those of its card."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.storage.files import locked, read_json, repoint, sha256_file, write_json, write_record
from nnunet_jobs.contract.storage.withdrawals import listed, trained_on_withdrawn
from nnunet_jobs.contract.storage.workspace import FINAL_CHECKPOINT, MODEL_CARD, Workspace
from nnunet_jobs.prediction.model import SelectedModel, model_from_card, selection_hash
from nnunet_jobs.selection.better import better
from nnunet_jobs.selection.commands import PLACEHOLDERS, commands, stages
from nnunet_jobs.selection.trained import Trained

log = logging.getLogger("nnunet_jobs")
SCHEMA = 1
_NOT_VALIDATED = (
    "Without an honest validation: trained on all training cases (fold 'all') and taken as it is, without a cross-validation. Only the "
    "hold-out, where there is one, says how good it is."
)
_PACKAGES = ("airflow-provider-nnunet", "nnunetv2", "torch")


def predicting_files(trained: Trained, members: Sequence[Mapping[str, Any]], context: StepContext) -> dict[str, str]:
    """sha256 by path below the model's folder of everything that a prediction reads: checkpoints, plans.json, dataset.json."""
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
    """The card without its metrics. ``inputs`` is the hash of all that the selection was made from."""
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
    """The model's card if it was made from the same inputs and every file that it lists is unchanged."""
    path = trained.root / MODEL_CARD
    if not path.is_file():
        return None
    card: dict[str, Any] = read_json(path)
    if card.get("schema") != SCHEMA or card.get("inputs") != inputs or _differing(card, trained.root):
        return None
    return card


def selected(card: Mapping[str, Any], root: Path) -> SelectedModel:
    """What the predictor takes, from a card that may not be written yet."""
    return model_from_card(card, root=root, model=str(card["model"]))


def promote(workspace: Workspace, dataset: str, model: str) -> None:
    """Make a model the champion of its dataset. The same call with an earlier model is the rollback.

    Raises:
        ConfigError: The model has no card, or somebody's own folder is where the link should be.
        DataError: A file is not the one that the card lists; names it.
    """
    with _promotion_lock(workspace, dataset):
        _promote(workspace, dataset, model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What a run did to the champion's link. ``promoted``: it moved the link. ``is_champion``: the link points to its model now."""

    promoted: bool
    is_champion: bool


def promote_by_policy(workspace: Workspace, dataset: str, model: str, policy: str, *, record: Path) -> Promotion:
    """Promote as FindBestParams.promote says.

    Args:
        record: File of the run, written before the link moves: an attempt that is killed in between is not forgotten by
            the next one, which finds the link moved and would take it for somebody else's work.
    """
    with _promotion_lock(workspace, dataset):
        champion = workspace.champion(dataset)
        if policy != "never" and champion != model and (policy == "always" or better(workspace, dataset, model, champion)):
            write_record(record, {"model": model, "before": champion})
            _promote(workspace, dataset, model)
        is_champion = workspace.champion(dataset) == model
        ours = read_json(record)["model"] == model if record.is_file() else False
        return Promotion(promoted=is_champion and ours, is_champion=is_champion)


def demote(workspace: Workspace, dataset: str, model: str) -> bool:
    """Take the champion's link away where it points to this model. Returns whether it did."""
    with _promotion_lock(workspace, dataset):
        if workspace.champion(dataset) != model:
            return False
        workspace.champion_link(dataset).unlink()
        log.warning("%s has no promoted model any more: %s was demoted", dataset, model)
        return True


def _promote(workspace: Workspace, dataset: str, model: str) -> None:
    card = workspace.model_card(dataset, model)
    root = workspace.model_root(model) / dataset
    if seen := trained_on_withdrawn(root):
        raise ConfigError(
            field="model",
            value=model,
            problem=f"not promoted, {listed(seen)} withdrawn since it was trained on",
            fix="train on a new version",
        )
    if differing := _differing(card, root):
        raise DataError(f"model={model!r}: not promoted, these files differ from its card or are missing: {', '.join(differing)}")
    link = workspace.champion_link(dataset)
    try:
        repoint(link, root)
    except FileExistsError as error:
        raise ConfigError(field="model", value=model, problem=str(error)) from error
    log.info("%s now uses model %s", dataset, model)


def _promotion_lock(workspace: Workspace, dataset: str) -> Any:
    return locked(Path(workspace.results) / ".locks" / f"{dataset}-champion.lock", interval=0.05)


def _differing(card: Mapping[str, Any], root: Path) -> list[str]:
    return [name for name, expected in card["files"].items() if not os.path.isfile(root / name) or sha256_file(root / name) != expected]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # used as a plain folder, without pip
        return None


def write_card(trained: Trained, card: Mapping[str, Any]) -> Path:
    """Write the card, last of all and by rename."""
    path = trained.root / MODEL_CARD
    write_json(path, card)
    return path
