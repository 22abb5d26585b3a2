"""The cases and patients that a model has trained on, written beside its card, so that nobody judges it by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.selection.trained import Trained

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
    groups = _groups(workspace.manifest(trained.dataset))
    cases = {case: groups.get(case, case) for case in _in_splits(trained.preprocessed)}
    origin = trained.settings.get("pretrained_sha256")
    if origin and (workspace.model_root(str(origin)) / trained.dataset / RECORD).is_file():
        cases |= read_json(workspace.model_root(str(origin)) / trained.dataset / RECORD)["cases"]
    path = trained.root / RECORD
    if not path.is_file() or read_json(path)["cases"] != cases:
        write_json(path, {"schema": SCHEMA, "cases": cases})


def read_seen(workspace: Workspace, dataset: str, model: str) -> Seen | None:
    """Read what a model has seen; None where nothing tells.

    A model that an earlier version selected has no record. The splits of its preprocessed version tell its cases then, and the
    dataset's manifest their patients.
    """
    root = workspace.model_root(model) / dataset
    try:
        cases: Mapping[str, str] = read_json(root / RECORD)["cases"]
    except FileNotFoundError:
        version = workspace.model_card(dataset, model).get("version")
        folder = workspace.preprocessed_root(version) / dataset if version else None
        if folder is None or not (folder / "splits_final.json").is_file():
            return None
        groups = _groups(workspace.manifest(dataset))
        cases = {case: groups.get(case, case) for case in _in_splits(folder)}
    return Seen(cases=frozenset(cases), groups=frozenset(cases.values()))


def _groups(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {case: str(entry.get("group") or case) for case, entry in manifest["cases"].items()}


def _in_splits(preprocessed: Path) -> set[str]:
    return {case for split in read_json(preprocessed / "splits_final.json") for case in (*split["train"], *split["val"])}
