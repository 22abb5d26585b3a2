"""Scores of a model on hold-out cases, kept beside the model: a case is predicted once, and again only when its image or label changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import DataError, Fault
from nnunet_jobs.contract.storage.files import content_hash, read_json, sha256_file, write_json
from nnunet_jobs.contract.storage.predictions import mean_dice
from nnunet_jobs.prediction.cases import Case
from nnunet_jobs.prediction.model import SelectedModel
from nnunet_jobs.selection.holdout import FOLDER, Holdout

log = logging.getLogger("nnunet_jobs")
SCHEMA = 1
SUFFIX = ".score.json"
_SCORES = ".scores"
_RULES = 1
"""Number of the rules of scoring: scores that were made under other rules are made again."""


def scores(model: SelectedModel, held: Holdout, context: StepContext) -> dict[str, dict[str, Any]]:
    """Give the scores of all hold-out cases, and predict those whose scores are not kept yet.

    Args:
        model: The model, with all its folds.
        held: The cases, with the hashes of their images and labels.
        context: Device, cores, stop request and signs of life.

    Returns:
        By case: ``dice`` by label name (None where neither reference nor segmentation has it) and ``reference_labels``.

    Raises:
        DataError: A case could not be predicted, or its files are not those registered; names each. What was predicted is kept.
    """
    folder = model.root / FOLDER
    with _locked(model, context):
        kept = {case: _kept(folder, case, _key(model.hash, held.cases[case])) for case in held.cases}
        missing = [case for case, record in kept.items() if record is None]
        if missing:
            log.info("model %s: %d of %d hold-out cases are predicted, the others are kept", model.model, len(missing), len(kept))
            _predict(model, held, missing, folder, context)
        return {case: record or read_json(_path(folder, case)) for case, record in kept.items()}


def kept_dice(root: Path, model_hash: str, cases: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Read the scores that are kept beside a model. Nothing is predicted, and the segmentations may be gone.

    Args:
        root: The model's folder.
        model_hash: The hash of its card.
        cases: Hold-out cases with the hashes of their images and labels; scores of other images or labels are not read.

    Returns:
        Dice by label name, by case; cases without kept scores are left out.
    """
    found = {}
    for case, entry in cases.items():
        record = _record(root / FOLDER, case, _key(model_hash, entry))
        if record is not None:
            found[case] = dict(record["dice"])
    return found


def evaluate(model: SelectedModel, held: Holdout, context: StepContext) -> dict[str, Any] | None:
    """Give the mean Dice of a model on its hold-out.

    Returns:
        ``mean`` foreground Dice, ``per_label`` and number of ``cases`` as in summary.json; None without hold-out cases.

    Raises:
        DataError: A case could not be predicted; names each.
    """
    _forget_others(model, held, context)
    return mean_dice(list(scores(model, held, context).values())) if held.cases else None


def _forget_others(model: SelectedModel, held: Holdout, context: StepContext) -> None:
    """Remove predictions and scores of cases that are no hold-out cases any more, also a prediction whose score was never written."""
    folder = model.root / FOLDER
    if not folder.is_dir():
        return
    with _locked(model, context):
        for place, ending in ((folder, held.ending), (folder / _SCORES, SUFFIX)):
            for path in place.glob(f"*{ending}"):
                if path.name.removesuffix(ending) not in held.cases:
                    path.unlink()


def _locked(model: SelectedModel, context: StepContext) -> AbstractContextManager[None]:
    lock = model.root.parent / ".locks" / f"{model.dataset}-holdout.lock"
    return context.content_lock(lock, what=f"the hold-out predictions of model {model.model}")


def _predict(model: SelectedModel, held: Holdout, missing: Sequence[str], folder: Path, context: StepContext) -> None:
    from nnunet_jobs.prediction.predictor import Predictor

    # A score is kept under the registered hashes, so it must not be made from files that were changed since.
    replace(held, cases={case: held.cases[case] for case in missing}).verify()
    (folder / _SCORES).mkdir(parents=True, exist_ok=True)
    cases = []
    for case in missing:
        images, label = held.files(case)
        cases.append(Case(case=case, images=images, label=label))

    def keep(case: Case, record: Mapping[str, Any]) -> None:
        if record["status"] == "predicted":
            kept = {name: record[name] for name in ("files", "dice", "reference_labels")}
            write_json(_path(folder, case.case), {"schema": SCHEMA, "key": _key(model.hash, held.cases[case.case]), **kept})

    records = Predictor(model, context).predict(cases, folder, on_record=keep)
    faults = [
        Fault(code="not-predicted", message=str(record["reason"]), case=case.case)
        for case, record in zip(cases, records, strict=True)
        if record["status"] != "predicted"
    ]
    if faults:
        raise DataError(f"hold-out cases could not be predicted: {'; '.join(map(str, faults))}", faults=faults)


def _key(model_hash: str, entry: Mapping[str, Any]) -> str:
    return content_hash([_RULES, model_hash, entry["images"], entry["label"]])


def _path(folder: Path, case: str) -> Path:
    return folder / _SCORES / f"{case}{SUFFIX}"


def _record(folder: Path, case: str, key: str) -> dict[str, Any] | None:
    """Give the kept scores if they are of the same model, image and label."""
    try:
        record: dict[str, Any] = read_json(_path(folder, case))
    except (FileNotFoundError, ValueError):
        return None
    return record if record.get("schema") == SCHEMA and record.get("key") == key else None


def _kept(folder: Path, case: str, key: str) -> dict[str, Any] | None:
    """Give the kept scores if the segmentation is still the one that was scored, too."""
    record = _record(folder, case, key)
    if record is None:
        return None
    whole = all((folder / name).is_file() and sha256_file(folder / name) == sha256 for name, sha256 in record["files"].items())
    return record if whole else None
