"""Defines the layout of an output folder of predictions: a folder for each model, and links to those of the newest run's model.

::

    OUTPUT/models/<model>-<start of its hash>/   segmentations, predictions.json, predictions.csv, contact-sheet.html, .cases/ (records)
    OUTPUT/newest -> models/<...>                the model of the run that ended last
    OUTPUT/<case>.nii.gz -> newest/<case>.nii.gz, OUTPUT/predictions.json -> newest/predictions.json, and so on

A later run with another model does not change the earlier model's folder; it moves the link.

``predictions.json`` is assembled, written and read here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import read_json, write_json

MODELS, NEWEST = "models", "newest"
RECORDS = ".cases"
PREDICTIONS, TABLE, SHEET = "predictions.json", "predictions.csv", "contact-sheet.html"
_ENTRY = ("status", "reason", "file", "seg", "volumes_ml", "flags", "dice", "reference_labels", "seconds", "model", "model_hash", "at")


def entry(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a case in ``predictions.json``, from its record."""
    return {name: record[name] for name in _ENTRY if name in record}


def model_folder(output: Path, model: str, model_hash: str) -> Path:
    """Return a model's folder in an output folder. A new selection of the model has another hash and another folder."""
    return output / MODELS / f"{model}-{model_hash[:8]}"


def newest_folder(output: Path) -> Path:
    """Return the folder of the newest run's model; ``output`` itself if predictions are directly in it."""
    link = output / NEWEST
    return link.resolve() if link.is_symlink() and link.exists() else output


def is_of_an_earlier_model(path: Path, *, below: Path) -> bool:
    """Whether a file is a prediction that the newest run's model did not make.

    Args:
        below: The searched folder; only output folders at or below it are considered.
    """
    for folder in path.parents:
        output = folder.parent.parent
        if folder.parent.name == MODELS and output.is_relative_to(below) and (output / NEWEST).is_symlink():
            return newest_folder(output) != folder.resolve()
    return False


def records_of(output: Path, case: str) -> Iterator[Path]:
    """Yield the possible paths of a case's record: the newest model's, and one directly in the folder."""
    for folder in dict.fromkeys((newest_folder(output), output)):
        yield folder / RECORDS / f"{case}.json"


def read_predictions(output: Path, *, strict: bool = False) -> dict[str, Any]:
    """``predictions.json`` of a folder; empty where there is none, or a damaged one.

    Args:
        output: The folder.
        strict: Raise the error of a file that is there and cannot be read now, instead of taking it for none.

    Raises:
        OSError: With ``strict``, the file cannot be read.
    """
    try:
        found = read_json(output / PREDICTIONS)
    except (FileNotFoundError, ValueError):
        return {}
    except OSError:
        if strict:
            raise
        return {}
    return found if isinstance(found, dict) else {}


def summarise(
    facts: Mapping[str, Any], cases: Mapping[str, Mapping[str, Any]], *, counted: Collection[Mapping[str, Any]]
) -> dict[str, Any]:
    """The content of ``predictions.json``.

    Args:
        facts: What is not of single cases: ``dataset``, ``model``, ``model_hash``, ``settings``, ``updated``, and what a batch
            knows besides (``not_judged``, ``not_predicted``, ``labels``). Counts and cases among them are replaced.
        cases: Case id to its :func:`entry`.
        counted: Entries that counts and Dice are of.
    """
    return {"schema": 1, **facts, **_counts(counted), "cases": dict(cases)}


def write_predictions(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write what :func:`summarise` made as ``predictions.json`` of a folder. Where several jobs write it, the caller holds the lock."""
    write_json(folder / PREDICTIONS, summary)


def write_case_record(folder: Path, case: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Record a case of a folder of predictions. The record comes after the case's files. Returns it as it is written."""
    (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    written = {"schema": 1, "case": case, **record, "at": datetime.now(UTC).isoformat()}
    write_json(folder / RECORDS / f"{case}.json", written)
    return written


def _counts(cases: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """``predicted``, ``failed``, ``flagged`` and ``dice`` of entries."""
    return {
        "predicted": sum(item["status"] == "predicted" for item in cases),
        "failed": sum(item["status"] == "failed" for item in cases),
        "flagged": sum(bool(item.get("flags")) for item in cases),
        "dice": mean_dice([item for item in cases if item.get("dice")]),
    }


def mean_dice(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the mean Dice over cases by label, and over the labels that exist.

    A label that is absent from a case (None) does not count in that case. A label that no reference has is undefined, even if it was
    predicted: its Dice is None, and it does not count in the mean.

    Args:
        records: Records of cases with a reference: ``dice`` by label name, and ``reference_labels``, which records of
            earlier versions do not have.

    Returns:
        ``{"cases", "mean", "per_label"}``, or None without cases.
    """
    cases = [record["dice"] for record in records]
    if not cases:
        return None
    existing = {name for record in records for name in record.get("reference_labels", record["dice"])}
    per_label: dict[str, float | None] = {}
    for label in dict.fromkeys(label for case in cases for label in case):
        known = [value for case in cases if (value := case.get(label)) is not None]
        per_label[label] = math.fsum(known) / len(known) if known and label in existing else None
    means = [value for value in per_label.values() if value is not None]
    return {"cases": len(cases), "mean": math.fsum(means) / len(means) if means else None, "per_label": per_label}
