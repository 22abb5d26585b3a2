"""What is looked at beside the prediction itself: the image as it was read, and the folds one by one; flags come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy.typing as npt

from nnunet_jobs.prediction.agreement import FoldAgreement
from nnunet_jobs.prediction.network import StageNetwork
from nnunet_jobs.prediction.preview import Preview
from nnunet_jobs.prediction.quality import Expected


@dataclass(slots=True)
class _Seen:
    preview: Preview | None = None
    agreement: dict[str, float] = field(default_factory=dict)


class Review:
    """Watches the cases of one predictor; its methods may be called from different threads for different cases.

    Args:
        expected: what to judge by; nothing is looked at and no flags are given without.
    """

    def __init__(self, expected: Expected | None = None) -> None:
        self._expected = expected
        self._seen: dict[str, _Seen] = {}

    def image_watcher(self, case: str) -> Callable[[Any], None] | None:
        """To be called with the image, (channel, z, y, x), when it is read; None when nobody wants to see it."""
        return partial(self._look_at, case) if self._expected else None

    def _look_at(self, case: str, image: Any) -> None:
        seen = self._seen.setdefault(case, _Seen())
        if seen.preview is None:  # several stages read it
            seen.preview = Preview.of(image)

    def folds(self, network: StageNetwork) -> FoldAgreement | None:
        """What compares the folds of a stage on one case; None when there is nothing to compare."""
        return FoldAgreement(network) if self._expected and len(network.stage.folds) > 1 else None

    def compare(self, case: str, agreement: FoldAgreement) -> None:
        """Take note of how far the folds of a stage agree; of an ensemble, the stage whose folds agree least counts."""
        known = self._seen.setdefault(case, _Seen()).agreement
        for label, dice in agreement.dice().items():
            known[label] = min(dice, known.get(label, 1.0))

    def judge(
        self,
        case: str,
        segmentation: npt.NDArray[Any],
        *,
        voxels: Mapping[str, int],
        volumes_ml: Mapping[str, float],
        properties: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What the case's record gets beside its result: ``flags``."""
        seen = self._seen.pop(case, _Seen())
        if self._expected is None:
            return {}
        flags = self._expected.flags(
            voxels=voxels,
            volumes_ml=volumes_ml,
            spacing=properties["spacing"],
            preview=seen.preview,
            segmentation=segmentation,
            agreement=seen.agreement,
        )
        return {"flags": flags}

    def forget(self, case: str) -> None:
        """A case that failed needs no memory."""
        self._seen.pop(case, None)
