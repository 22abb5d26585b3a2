"""Makes flags and pictures from the image as it was read and from each fold's prediction."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dataset.readers.agreement import voxel_order
from nnunet_jobs.prediction.agreement import FoldAgreement
from nnunet_jobs.prediction.network import StageNetwork
from nnunet_jobs.prediction.preview import Preview, voxel_affine
from nnunet_jobs.prediction.quality import Expected, of_faults


@dataclass(slots=True)
class _Seen:
    preview: Preview | None = None
    agreements: list[FoldAgreement] = field(default_factory=list)


class Review:
    """Watches the cases of one predictor; its methods may be called from different threads for different cases.

    Args:
        expected: Description of the training cases to compare with; no flags are given if None.
        pictures: Folder for the contact sheet's pictures; none are made if None.
    """

    def __init__(self, expected: Expected | None = None, *, pictures: Path | None = None) -> None:
        self._expected, self._pictures = expected, pictures
        self._seen: dict[str, _Seen] = {}

    def image_watcher(self, case: str) -> Callable[[Any], None] | None:
        """Return a function to call with the image, (channel, z, y, x), when it is read; None if it is not needed."""
        return partial(self._look_at, case) if self._expected or self._pictures else None

    def _look_at(self, case: str, image: Any) -> None:
        seen = self._seen.setdefault(case, _Seen())
        if seen.preview is None:  # several stages read it
            seen.preview = Preview.of(image)

    def folds(self, network: StageNetwork) -> FoldAgreement | None:
        """Return what compares the folds of a stage on one case; None if there is nothing to compare."""
        return FoldAgreement(network) if self._expected and len(network.stage.folds) > 1 else None

    def folds_done(self, case: str, agreement: FoldAgreement) -> None:
        """Take the folds of a stage when all are done. They are compared in :meth:`assess`, not in the network's thread."""
        self._seen.setdefault(case, _Seen()).agreements.append(agreement)

    def assess(
        self,
        case: str,
        segmentation: npt.NDArray[Any],
        *,
        voxels: Mapping[str, int],
        volumes_ml: Mapping[str, float],
        properties: Mapping[str, Any],
        odd: Sequence[Fault] = (),
    ) -> dict[str, Any]:
        """Return the ``flags`` for the case's record, and write its picture beside the records.

        Args:
            odd: Warnings of its images, which become flags too.
        """
        seen = self._seen.pop(case, _Seen())
        if self._pictures is not None and seen.preview is not None:
            picture = seen.preview.picture(segmentation, properties)
            self._pictures.mkdir(exist_ok=True)
            (self._pictures / f"{case}.json").write_text(json.dumps(picture, allow_nan=False))  # a damaged one is ignored
        if self._expected is None:
            return {}
        flags = self._expected.flags(
            voxels=voxels,
            volumes_ml=volumes_ml,
            spacing=properties["spacing"],
            preview=seen.preview,
            segmentation=segmentation,
            agreement=_least(seen.agreements),
            order=voxel_order(voxel_affine(properties)),
        )
        return {"flags": [*of_faults(odd), *flags]}

    def forget(self, case: str) -> None:
        """Forget a case that failed."""
        self._seen.pop(case, None)


def _least(agreements: Sequence[FoldAgreement]) -> dict[str, float]:
    """Return Dice by label; of an ensemble, that of the stage whose folds agree least."""
    found: dict[str, float] = {}
    for agreement in agreements:
        for label, dice in agreement.dice().items():
            found[label] = min(dice, found.get(label, 1.0))
    return found
