"""The cases and patients that a model has trained on, written beside its card, so that nobody judges it by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import read_json, read_object, write_json
from nnunet_jobs.contract.storage.workspace import MODEL_CARD, Workspace
from nnunet_jobs.selection.trained import Trained
from nnunet_jobs.training.fold import SETTINGS_RECORD

RECORD = "training_cases.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a model has trained on, or validated its training with.

    Attributes:
        cases: Case ids.
        groups: Patients of these cases, as far as they are known.
    """

    cases: frozenset[str]
    groups: frozenset[str]

    def knows(self, case: str, group: str) -> bool:
        """Whether the model has seen the case or another one of its patient."""
        return case in self.cases or group in self.groups


def write_seen(trained: Trained, workspace: Workspace) -> None:
    """Write the record of a model: cases of all its folds, and those of the model that it was fine-tuned from."""
    groups = patients(workspace.manifest(trained.dataset))
    cases = {case: groups.get(case, case) for case in cases_in_splits(trained.preprocessed)}
    cases |= _of_origin(workspace, trained.dataset, trained.settings)
    path = trained.root / RECORD
    if not path.is_file() or read_json(path)["cases"] != cases:
        write_json(path, {"schema": SCHEMA, "cases": cases})


def read_seen(workspace: Workspace, dataset: str, model: str) -> Seen | None:
    """Read what a model has seen; None where nothing tells.

    A model that an earlier version selected, or that was never selected, has no record. The splits of its preprocessed version tell its
    cases then, and the dataset's manifest their patients.
    """
    cases = _cases(workspace, dataset, model)
    return None if cases is None else Seen(cases=frozenset(cases), groups=frozenset(cases.values()))


def _cases(workspace: Workspace, dataset: str, model: str) -> dict[str, str] | None:
    """Return the patient of each case that a model has seen; None where nothing tells."""
    root = workspace.model_root(model) / dataset
    try:
        recorded: dict[str, str] = read_json(root / RECORD)["cases"]
    except FileNotFoundError:
        settings = read_object(root / SETTINGS_RECORD)
        version = settings.get("version") or read_object(root / MODEL_CARD).get("version")
        folder = workspace.preprocessed_root(version) / dataset if version else None
        if folder is None or not (folder / "splits_final.json").is_file():
            return None
        groups = patients(workspace.manifest(dataset))
        return {case: groups.get(case, case) for case in cases_in_splits(folder)} | _of_origin(workspace, dataset, settings)
    return recorded


def _of_origin(workspace: Workspace, dataset: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the cases of the model that a model was fine-tuned from; none where it is not of this workspace."""
    origin = settings.get("pretrained_sha256")
    return (_cases(workspace, dataset, str(origin)) or {}) if origin else {}


def patients(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the patient of each case of a manifest: a case without one is a patient of its own."""
    return {case: str(entry.get("group") or case) for case, entry in manifest["cases"].items()}


def cases_in_splits(preprocessed: Path) -> set[str]:
    """Return all cases of the folds of a preprocessed version."""
    return {case for split in read_json(preprocessed / "splits_final.json") for case in (*split["train"], *split["val"])}
