"""What an output folder of predictions looks like: a folder for each model, and links that show what the newest run's model predicted.

::

    OUTPUT/models/<model>-<start of its hash>/   segmentations, predictions.json, predictions.csv, contact-sheet.html, .cases/ (records)
    OUTPUT/newest -> models/<...>                the model of the run that ended last
    OUTPUT/<case>.nii.gz -> newest/<case>.nii.gz, OUTPUT/predictions.json -> newest/predictions.json, and so on

A later run with another model leaves the earlier model's folder as it is and moves the link.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import read_json

MODELS, NEWEST = "models", "newest"
RECORDS = ".cases"
PREDICTIONS, TABLE, SHEET = "predictions.json", "predictions.csv", "contact-sheet.html"
_ENTRY = ("status", "reason", "file", "seg", "volumes_ml", "flags", "dice", "reference_labels", "seconds", "model", "model_hash", "at")


def entry(record: Mapping[str, Any]) -> dict[str, Any]:
    """What ``predictions.json`` says about a case, from its record."""
    return {name: record[name] for name in _ENTRY if name in record}


def model_folder(output: Path, model: str, model_hash: str) -> Path:
    """Where a model's predictions of an output folder are kept. A selection that was made anew has another hash and another folder."""
    return output / MODELS / f"{model}-{model_hash[:8]}"


def newest_folder(output: Path) -> Path:
    """The folder of the newest run's model; ``output`` itself where predictions lie directly in it."""
    link = output / NEWEST
    return link.resolve() if link.is_symlink() and link.exists() else output


def is_of_an_earlier_model(path: Path, *, below: Path) -> bool:
    """Whether a file is a prediction that the newest run's model did not make.

    Args:
        below: Folder that is looked through: output folders that are it, or lie below it, are meant.
    """
    for folder in path.parents:
        output = folder.parent.parent
        if folder.parent.name == MODELS and output.is_relative_to(below) and (output / NEWEST).is_symlink():
            return newest_folder(output) != folder.resolve()
    return False


def records_of(output: Path, case: str) -> Iterator[Path]:
    """Where a case's record may be: the newest model's, and one that lies directly in the folder."""
    for folder in dict.fromkeys((newest_folder(output), output)):
        yield folder / RECORDS / f"{case}.json"


def read_predictions(output: Path) -> dict[str, Any]:
    """``predictions.json`` of a folder; empty where there is none, or none that can be read."""
    try:
        found = read_json(output / PREDICTIONS)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
