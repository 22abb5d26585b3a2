"""Finds predictions of withdrawn cases, and removes them on request."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import locked, read_json, write_record
from nnunet_jobs.contract.storage.predictions import MODELS, RECORDS, SHEET, read_predictions, summarise, write_predictions
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.contact_sheet import write_sheet
from nnunet_jobs.prediction.model_output import forget_dead_links, unrecorded
from nnunet_jobs.prediction.parts import forget_cases
from nnunet_jobs.prediction.records import LEFT_OUT, MARKERS, PICTURES, PLANS, read_left_out
from nnunet_jobs.prediction.tables import write_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A prediction folder below ``output_roots``, and the withdrawn cases in it."""

    folder: str
    cases: tuple[str, ...]


def predictions_of(workspace: Workspace, dataset: str, cases: Collection[str]) -> list[Predicted]:
    """Return the prediction folders of a dataset's models that hold a record of one of the cases."""
    found = []
    for folder in _folders(workspace):
        if read_predictions(folder, strict=True).get("dataset") in (dataset, None):
            here = tuple(sorted(case for case in cases if (folder / RECORDS / f"{case}.json").is_file()))
            if here:
                found.append(Predicted(folder=str(folder), cases=here))
    return found


def remove(predicted: Predicted) -> int:
    """Delete the cases' segmentations, probabilities, pictures and records. Returns the number of files deleted.

    They are also removed from ``predictions.json``, the table and the contact sheet. The record is deleted last, so that an
    interrupted removal is found again.
    """
    folder, removed = Path(predicted.folder), 0
    for case in predicted.cases:
        record = folder / RECORDS / f"{case}.json"
        for name in read_json(record).get("files", {}):
            path = folder / name
            if path.resolve().is_relative_to(folder.resolve()) and path.is_file():
                path.unlink()
                removed += 1
        if folder.parent.name == MODELS:
            for path in unrecorded(folder.parent.parent, case):
                path.unlink()
                removed += 1
    forget_cases(folder / RECORDS / PLANS, predicted.cases)
    with locked(folder / RECORDS / "predictions.lock", interval=0.02):
        for path in (folder / RECORDS / LEFT_OUT).glob("*.json"):
            write_record(path, {"cases": [item for item in read_left_out(path) if not _is_of(item["name"], predicted.cases)]})
        summary = read_predictions(folder, strict=True)  # one that cannot be read now may name the cases
        if set(summary.get("cases", {})) & set(predicted.cases):
            left = _without(summary, predicted.cases)
            write_table(folder, left)
            if (folder / SHEET).exists():
                write_sheet(folder, left, folder / RECORDS / PICTURES)
            write_predictions(folder, left)  # last: after an interruption, the cases in it are found and removed again
        for case in predicted.cases:
            (folder / RECORDS / PICTURES / f"{case}.json").unlink(missing_ok=True)
            for markers in (folder / RECORDS).glob(f"*{MARKERS}"):
                (markers / case).unlink(missing_ok=True)
            (folder / RECORDS / f"{case}.json").unlink(missing_ok=True)
    if folder.parent.name == MODELS:
        forget_dead_links(folder.parent.parent)
    return removed


def _folders(workspace: Workspace) -> Iterator[Path]:
    for root in workspace.output_roots:
        for parent, folders, _ in os.walk(root):
            if RECORDS in folders:
                yield Path(parent)
            folders[:] = [name for name in folders if name != RECORDS]


def _without(summary: dict[str, Any], cases: Collection[str]) -> dict[str, Any]:
    """Return the summary without the cases; counts and Dice are of predictions of the summary's model."""
    left = {case: entry for case, entry in summary["cases"].items() if case not in cases}
    ours = [entry for entry in left.values() if entry.get("model_hash") in (summary["model_hash"], None)]
    listed = [item for item in summary.get("not_predicted") or () if not _is_of(item["name"], cases)]
    return summarise({**summary, "not_predicted": listed}, left, counted=ours)


def _is_of(name: str, cases: Collection[str]) -> bool:
    """Whether a file's name is a case id, optionally with a channel and an ending."""
    return any(re.fullmatch(rf"{re.escape(case)}(_\d{{4}})?(\..*)?", name) for case in cases)
