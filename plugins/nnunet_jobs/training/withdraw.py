"""Finds models that have seen withdrawn cases, removes the cases' files from nnUNet_results, and marks the models."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.steps.withdrawal import AffectedModel
from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.contract.storage.withdrawals import MARK, SCHEMA, trained_on_withdrawn
from nnunet_jobs.contract.storage.workspace import FINAL_CHECKPOINT, VERSIONS, Workspace
from nnunet_jobs.training.fold import SETTINGS_RECORD, read_json_or_empty
from nnunet_jobs.training.fold_record import FOLD_RECORD

# Predictions with their scores, probabilities and a cascade's input, with every image ending that nnU-Net writes.
_SUFFIXES = (".score.json", ".npz", ".pkl", ".npy", ".b2nd", "_seg.b2nd", ".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif", ".tiff")

Lost = Mapping[str, Mapping[str, Mapping[str, list[int]]]]
"""Maps version to case to ``train`` and ``val``, the folds in which the case was."""


def models_that_saw(workspace: Workspace, dataset: str, lost: Lost) -> list[AffectedModel]:
    """Return models trained on a version that has lost cases, and models fine-tuned from them, of any dataset of the workspace."""
    settings = _settings(workspace)
    found: dict[tuple[str, str], AffectedModel] = {}
    for (name, model), values in settings.items():
        cases = lost.get(str(values["version"]), {})
        if name == dataset and cases:
            folder = workspace.model_root(model) / name
            trained = _trained_folds(folder, cases)
            found[name, model] = AffectedModel(
                dataset=name,
                model=model,
                cases=sorted(cases),
                configurations=trained,
                promoted=workspace.champion(name) == model,
                files=len(list(files_of(folder, cases))),
            )
    grown = True
    while grown:
        weights = {source: seen for seen in found.values() for source in _weights(workspace, seen)}
        derived = [key for key, values in settings.items() if key not in found and values.get("pretrained_sha256") in weights]
        for name, model in derived:
            origin = weights[settings[name, model]["pretrained_sha256"]]
            champion = workspace.champion(name) == model
            found[name, model] = AffectedModel(dataset=name, model=model, cases=origin.cases, through=origin.model, promoted=champion)
        grown = bool(derived)
    return [found[key] for key in sorted(found)]


def _settings(workspace: Workspace) -> dict[tuple[str, str], Mapping[str, Any]]:
    paths = sorted((Path(workspace.results) / VERSIONS).glob(f"[!.]*/*/{SETTINGS_RECORD}"))
    return {(path.parent.name, path.parent.parent.name): read_json_or_empty(path) for path in paths}


def _trained_folds(folder: Path, cases: Mapping[str, Mapping[str, list[int]]]) -> dict[str, list[int | str]]:
    """Map each configuration to its begun folds that had one of the cases in training."""
    seen = {str(fold) for where in cases.values() for fold in where["train"]} | {"all"}
    found: dict[str, list[int | str]] = {}
    for path in sorted(folder.glob("*__*__*/fold_*")):
        fold = path.name.removeprefix("fold_")
        if fold in seen and any(path.glob("checkpoint_*.pth")):
            found.setdefault(path.parent.name.split("__")[2], []).append(fold if fold == "all" else int(fold))
    return found


def _weights(workspace: Workspace, seen: AffectedModel) -> Iterator[str]:
    """Yield what the settings of models fine-tuned from this one contain: its name, or the hash of a final checkpoint."""
    yield seen.model
    for path in (workspace.model_root(seen.model) / seen.dataset).glob(f"*/fold_*/{FOLD_RECORD}"):
        stamped = read_json_or_empty(path).get("files", {}).get(FINAL_CHECKPOINT)
        if stamped:
            yield stamped["sha256"]


def files_of(folder: Path, cases: Collection[str]) -> Iterator[Path]:
    """Yield predictions and probabilities of the cases below a model's folder, by exact name: ``case1`` is not ``case10``."""
    names = {f"{case}{suffix}" for case in cases for suffix in _SUFFIXES}
    for parent, _, files in os.walk(folder):
        yield from (Path(parent, name) for name in files if name in names)


def remove_files(folder: Path, cases: Collection[str]) -> int:
    """Remove the files of :func:`files_of`, and return their number."""
    doomed = list(files_of(folder, cases)) if cases else []
    for path in doomed:
        path.unlink(missing_ok=True)
    return len(doomed)


def mark(workspace: Workspace, seen: AffectedModel, *, at: str) -> None:
    """Record beside the model's card that it has seen withdrawn cases."""
    folder = workspace.model_root(seen.model) / seen.dataset
    known = trained_on_withdrawn(folder)
    where = {"configurations": seen.configurations} | ({"through": seen.through} if seen.through else {})
    cases = known | {case: {"at": known.get(case, {}).get("at", at), **where} for case in seen.cases}
    if cases != known:
        write_json(folder / MARK, {"schema": SCHEMA, "cases": cases})


def unmark(workspace: Workspace, dataset: str, cases: Collection[str]) -> None:
    """Remove a dataset's cases whose withdrawal was lifted from every mark."""
    for path in (Path(workspace.results) / VERSIONS).glob(f"[!.]*/*/{MARK}"):
        known = trained_on_withdrawn(path.parent)
        ours = {case for case, entry in known.items() if path.parent.name == dataset or "through" in entry}
        left = {case: entry for case, entry in known.items() if case not in ours or case not in cases}
        if left and left != known:
            write_json(path, {"schema": SCHEMA, "cases": left})
        elif not left:
            path.unlink()
