"""Writes ``predictions.json`` for spreadsheets, with one line for each case."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import write_atomic
from nnunet_jobs.contract.storage.predictions import TABLE

_COLUMNS = ("case", "status", "reason", "seconds", "flags", "model", "file")
_MEASURES = {"volumes_ml": "ml", "dice": "dice"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def write_table(output: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``predictions.csv``: status, reason, seconds, flags (codes), and per label ``<label> ml`` and ``<label> dice`` where known.

    Args:
        summary: Content of ``predictions.json``.
    """
    cases: Mapping[str, Mapping[str, Any]] = summary["cases"]
    measured = {name: list(dict.fromkeys(label for entry in cases.values() for label in entry.get(name) or ())) for name in _MEASURES}
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow([*_COLUMNS, *(_cell(f"{label} {unit}") for name, unit in _MEASURES.items() for label in measured[name])])
    for case, entry in cases.items():
        flags = " ".join(dict.fromkeys(flag["code"] for flag in entry.get("flags") or ()))
        known = {**entry, "case": case, "flags": flags}
        numbers = ((entry.get(name) or {}).get(label) for name in _MEASURES for label in measured[name])
        lines.writerow([*(_cell(known.get(column)) for column in _COLUMNS), *map(_cell, numbers)])
    path = output / TABLE
    write_atomic(path, text.getvalue().encode())
    return path


def _cell(value: Any) -> Any:
    """Put an apostrophe before a string that spreadsheets would take for a formula, as they mark text themselves."""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value
