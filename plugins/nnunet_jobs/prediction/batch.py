"""Predicts the cases of one part: finds those that are done already, predicts the others, and records each."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.prediction.cases import Case
from nnunet_jobs.prediction.export import fresh_folder
from nnunet_jobs.prediction.model import SelectedModel
from nnunet_jobs.prediction.model_output import ModelOutput
from nnunet_jobs.prediction.quality import Expected
from nnunet_jobs.prediction.reading import ReadBeside
from nnunet_jobs.prediction.records import Records, converted_folder
from nnunet_jobs.prediction.settings import Settings, settings_key

if TYPE_CHECKING:
    from nnunet_jobs.prediction.studies import SegWriter, Studies


@dataclass(slots=True, kw_only=True)
class Batch:
    """Predicts one part's cases while it holds the part's lock.

    Attributes:
        keys: Hash of all that each case's segmentation depends on; None if its files cannot be read.
        markers: See :class:`ReadBeside`.
        pictures: Folder for the contact sheet's pictures; none are made if None.
        studies: DICOM studies of the cases that come from DICOM.
        segs: DICOM SEG files of these cases.
        failed: ``case``, ``reason`` and ``failure_class`` of each failed case.
    """

    model: SelectedModel
    settings: Settings
    context: StepContext
    records: Records
    model_output: ModelOutput
    markers: Path
    keys: Mapping[str, str | None]
    expected: Expected
    pictures: Path | None
    studies: Studies | None
    segs: SegWriter | None
    failed: list[dict[str, str]] = field(default_factory=list)

    def done(self, cases: Sequence[Case], *, probabilities: bool) -> dict[str, dict[str, Any]]:
        """Return the records of the cases whose segmentation exists already."""
        found = {}
        for case in cases:
            key = self.keys[case.case]
            record = self.records.done(case.case, key, probabilities=probabilities) if key else None
            if record is not None:
                found[case.case] = record
        return found

    def complete(self, done: Mapping[str, dict[str, Any]]) -> None:
        """Write the DICOM SEG of finished cases that have none, or one with other codes."""
        for case, record in done.items():
            if self.segs is not None and record.get("seg_key") != self.segs.key:
                self.context.check_stop()
                self._keep(case, record)

    def predict(self, cases: list[Case], *, scratch: Path) -> None:
        """Predict the cases that are not done yet."""
        if not cases:
            return  # nothing new: torch is not even imported
        with (
            self._converted(cases, converted_folder(scratch)) as ready,
            ReadBeside(self.markers, memory_mib=self.context.memory_mib) as reading,
        ):
            from nnunet_jobs.prediction.predictor import Predictor
            from nnunet_jobs.prediction.review import Review

            made = settings_key(self.model, self.settings)

            def keep(case: Case, record: dict[str, Any]) -> None:
                self._keep(case.case, {**record, "settings_key": made, "key": self.keys[case.case]})

            predictor = Predictor(
                self.model, self.context, self.settings, reading=reading, review=Review(self.expected, pictures=self.pictures)
            )
            for turn in reading.in_turns(ready):
                predictor.predict(turn, self.records.output, scratch=scratch, on_record=keep)

    @contextlib.contextmanager
    def _converted(self, cases: list[Case], folder: Path) -> Iterator[list[Case]]:
        """Yield the cases with images that exist; remove converted images afterwards."""
        if self.studies is None:
            yield cases
            return
        fresh_folder(folder)
        try:
            yield self.studies.convert(cases, self.context)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, case: str, record: dict[str, Any]) -> None:
        if self.segs is not None and record["status"] == "predicted":
            record = self.segs.add(record, case, self.records.output)
            self.context.beat()
        self.records.write(case, record)
        self.model_output.show_case(list(record.get("files") or ()))
        if record["status"] == "failed":
            self.failed.append({"case": case, "reason": record["reason"], "failure_class": record["failure_class"]})
