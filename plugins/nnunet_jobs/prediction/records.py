"""Records what was predicted: one record for each case, written after its segmentation, and predictions.json merged from all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import content_hash, locked, read_json, sha256_file, write_record
from nnunet_jobs.contract.storage.predictions import RECORDS, entry, summarise, write_case_record, write_predictions
from nnunet_jobs.prediction.contact_sheet import write_sheet
from nnunet_jobs.prediction.model import SelectedModel
from nnunet_jobs.prediction.parts import PartPlans
from nnunet_jobs.prediction.quality import Expected
from nnunet_jobs.prediction.settings import Settings, settings_key
from nnunet_jobs.prediction.tables import write_table

PICTURES, PLANS, MARKERS, LEFT_OUT = ".pictures", ".parts", ".reading", ".left-out"
"""Names below the records: pictures, plans, the ending of each part's folder of markers, and lists of what is not predicted."""


def scratch_folder(folder: Path, part: int, parts: int) -> Path:
    """Return the folder for incomplete files, on the file system of ``folder``; the holder of the part's lock owns it."""
    return folder / RECORDS / f"part-{part}-of-{parts}.partial"


def converted_folder(scratch: Path) -> Path:
    """Return the folder for images that are converted for the job; it has the same owner."""
    return scratch.with_suffix(".converted")


class Records:
    """Manages the records of one model's folder of predictions. Each part writes its cases' records; merging holds a kernel lock."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._folder = output / RECORDS
        self._folder.mkdir(parents=True, exist_ok=True)

    def part_lock(self, part: int, parts: int) -> Path:
        """Return the lock file of one part: if a part is submitted twice, one job works and the other waits."""
        return self._folder / f"part-{part}-of-{parts}.lock"

    def markers(self, part: int, parts: int) -> Path:
        """Return the folder of one part's markers for the cases that it is reading; see :mod:`nnunet_jobs.prediction.reading`."""
        return self._folder / f"part-{part}-of-{parts}{MARKERS}"

    @property
    def pictures(self) -> Path:
        """Return the folder of the contact sheet's pictures. They show patients, as the segmentations do."""
        return self._folder / PICTURES

    def part_plans(self, parts: int) -> PartPlans:
        """Return the plans that say which part predicts which case."""
        return PartPlans(self._folder / PLANS, lambda part: self.part_lock(part, parts))

    def done(self, case: str, key: str, *, probabilities: bool) -> dict[str, Any] | None:
        """Return the case's record if its output is complete and was made by the same model from the same images."""
        record = self._read(case)
        if record is None or record.get("status") != "predicted" or record.get("key") != key:
            return None
        names = list(record["files"])
        if probabilities and not any(name.endswith(".npz") for name in names):
            return None
        for name in names:
            path = self.output / name
            if not path.is_file() or sha256_file(path) != record["files"][name]:
                return None
        return record

    def write(self, case: str, record: Mapping[str, Any]) -> None:
        """Record a case, after its files were written."""
        write_case_record(self.output, case, record)

    def merge(
        self, model: SelectedModel, settings: Settings, expected: Expected, *, labels: Mapping[str, Any], contact_sheet: bool = True
    ) -> dict[str, Any]:
        """Write predictions.json, predictions.csv and, if asked for, contact-sheet.html from all parts' records.

        Counts and Dice are of predictions of this model with these settings.

        Args:
            expected: Description of the training cases that flags were based on.
            labels: Labels of the model's dataset.json.

        Returns:
            Content of predictions.json.
        """
        made = settings_key(model, settings)
        with locked(self._folder / "predictions.lock", interval=0.02):
            records = {item.stem: read_json(item) for item in sorted(self._folder.glob("*.json"))}
            entries = {case: entry(record) for case, record in records.items()}
            current = [entries[case] for case, record in records.items() if record.get("settings_key") == made]
            summary = summarise(
                {
                    "dataset": model.dataset,
                    "model": model.model,
                    "model_hash": model.hash,
                    "settings": asdict(settings),
                    "updated": datetime.now(UTC).isoformat(),
                    "not_judged": dict(expected.not_judged),
                    "not_predicted": self._left_out(),
                    "labels": dict(labels),
                },
                entries,
                counted=current,
            )
            write_predictions(self.output, summary)
            write_table(self.output, summary)
            if contact_sheet:
                write_sheet(self.output, summary, self.pictures)
        return summary

    def leave_out(self, of: Any, found: Sequence[Mapping[str, str]]) -> None:
        """Keep the list of files among the cases that are not predicted.

        Args:
            of: The requested cases, as JSON; their earlier list is replaced.
            found: ``name`` and ``reason`` of each file.
        """
        path = self._folder / LEFT_OUT / f"{content_hash([of])}.json"
        if found:
            path.parent.mkdir(exist_ok=True)
            write_record(path, {"cases": [dict(item) for item in found]})
        else:
            path.unlink(missing_ok=True)

    def _left_out(self) -> list[dict[str, str]]:
        return [item for path in sorted((self._folder / LEFT_OUT).glob("*.json")) for item in read_left_out(path)]

    def _read(self, case: str) -> dict[str, Any] | None:
        try:
            record = read_json(self._folder / f"{case}.json")
        except (FileNotFoundError, ValueError):
            return None
        return record if isinstance(record, dict) else None


def read_left_out(path: Path) -> list[dict[str, str]]:
    """Read one list of files among the cases that were not predicted. Version 0.1 wrote only the list."""
    found = read_json(path)
    listed: list[dict[str, str]] = found if isinstance(found, list) else found["cases"]
    return listed
