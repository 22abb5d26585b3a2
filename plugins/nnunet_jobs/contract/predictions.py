"""What an output folder of predictions looks like: ``predictions.json``, and one record a case from which it is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.files import read_json

RECORDS = ".cases"
PREDICTIONS = "predictions.json"
_ENTRY = ("status", "reason", "file", "seg", "volumes_ml", "flags", "dice", "reference_labels", "seconds", "model", "model_hash", "at")


def entry(record: Mapping[str, Any]) -> dict[str, Any]:
    """What ``predictions.json`` says about a case, from its record."""
    return {name: record[name] for name in _ENTRY if name in record}


def read_predictions(output: Path) -> dict[str, Any]:
    """``predictions.json`` of a folder; empty where there is none, or none that can be read."""
    try:
        found = read_json(output / PREDICTIONS)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
