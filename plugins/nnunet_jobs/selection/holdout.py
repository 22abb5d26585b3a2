"""The hold-out cases of a dataset: labelled cases that a model was never trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import DataError, Fault
from nnunet_jobs.contract.storage.files import content_hash, sha256_file
from nnunet_jobs.selection.seen import cases_in_splits
from nnunet_jobs.selection.trained import Trained

log = logging.getLogger("nnunet_jobs")
FOLDER = "holdout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """The hold-out cases of a dataset with their registered hashes.

    Attributes:
        cases: Manifest entries by case.
        raw: ``nnUNet_raw/DatasetXXX_Name``.
        ending: Ending of the files, with the dot.
    """

    cases: Mapping[str, Mapping[str, Any]]
    raw: Path
    ending: str

    @property
    def hash(self) -> str | None:
        """Return the hash of images and labels; Dice of two models is comparable if it is equal. None without cases."""
        if not self.cases:
            return None
        return content_hash({case: [entry["images"], entry["label"]] for case, entry in self.cases.items()})

    def files(self, case: str) -> tuple[tuple[Path, ...], Path]:
        """Return (images, label) of one case."""
        images = (self.raw / "imagesTs" / f"{case}_{channel:04d}{self.ending}" for channel in range(len(self.cases[case]["images"])))
        return tuple(images), self.raw / "labelsTs" / f"{case}{self.ending}"

    def verify(self) -> None:
        """Compare the files with the manifest.

        Raises:
            DataError: Files are missing or differ; the message names them.
        """
        faults = []
        for case, entry in self.cases.items():
            images, label = self.files(case)
            for path, expected in zip((*images, label), (*entry["images"], entry["label"]), strict=True):
                if not path.is_file() or sha256_file(path) != expected:
                    faults.append(Fault(code="changed", message="is missing or differs from the manifest", case=case, file=path.name))
        if faults:
            listed = "; ".join(map(str, faults))
            raise DataError(f"hold-out cases are not those registered; run RegisterDatasetOperator again: {listed}", faults=faults)


def find_holdout(trained: Trained, context: StepContext) -> Holdout:
    """The labelled hold-out cases of the dataset's manifest. One that this model's version trained on is left out, and named."""
    manifest = context.workspace.manifest(trained.dataset)
    seen = cases_in_splits(trained.preprocessed)
    held = {case: entry for case, entry in manifest["cases"].items() if entry["split"] == "holdout" and entry["label"]}
    leaked = sorted(seen & set(held))
    if leaked:
        log.warning("%d hold-out cases are training cases of this model and do not count: %s", len(leaked), ", ".join(leaked[:5]))
    return Holdout(
        cases={case: entry for case, entry in sorted(held.items()) if case not in seen},
        raw=context.workspace.raw_dataset(trained.dataset),
        ending=manifest["file_ending"],
    )
