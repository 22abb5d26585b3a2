"""Flags predictions that look wrong, without a reference segmentation, for people to look at. A flag never fails a case.

========================  ==========================================================================================================
``empty``                 no foreground at all, or none of a label that at least 95 % of 8 or more training cases have
``volume``                ml of a label outside what the training cases have: beyond the smallest and the largest, and beyond three
                          standard deviations of the logarithm (3 of 1,000 cases of a log-normal label; at least 10 % each, since
                          hand-drawn labels are no more precise); needs 8 cases with the label
``folds-disagree``        mean pairwise Dice of the folds' own label maps below 0.7, or below 0.8 of the cross-validated Dice where
                          that is less (small lesions): below it, the folds contradict one another more than the truth
``intensity``             CT: a quarter of the predicted foreground outside the 0.5 and 99.5 percentiles of the training foreground,
                          of which 1 % lies outside. Others have no unit, and scanners differ several times: flagged when its median
                          is 10 times beyond these percentiles, as with a wrong unit or a lost rescale slope. Datasets whose own
                          cases differ that much show nothing, nor do too small values where the training's reach zero
``voxel-order``           its voxels are stored in an order, such as RAS, that no training case has: nnU-Net learns from voxels as stored
``spacing``               an axis more than a quarter beyond the training cases' spacings, about where resampling becomes guesswork
others                    warnings of its files, by the codes of ``docs/reference/faults.md``: what registration would have warned of
========================  ==========================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.storage.files import read_object
from nnunet_jobs.prediction.model import SelectedModel
from nnunet_jobs.prediction.preview import Preview

REFERENCE = "reference.json"
"""File beside the model card that describes its training cases."""

_ENOUGH, _NEARLY_ALL = 8, 0.95
_SIGMAS, _LEAST_SIGMA = 3.0, 0.1
_FOLD_DICE, _OF_CROSS_VALIDATION = 0.7, 0.8
_OUTSIDE, _TIMES = 0.25, 10.0
_SPACING = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One finding to look at: its code, a sentence, the value found, and the value expected."""

    code: str
    message: str
    value: Any = None
    expected: Any = None


def label_range(volumes: Sequence[float]) -> dict[str, float] | None:
    """Return ``low``, ``median`` and ``high`` ml of a label in the training cases that have it; None if there are too few."""
    known = np.asarray([volume for volume in volumes if volume > 0], dtype=np.float64)
    if len(known) < _ENOUGH:
        return None
    logs = np.log(known)
    middle = float(np.median(logs))
    spread = _SIGMAS * max(_LEAST_SIGMA, 1.4826 * float(np.median(np.abs(logs - middle))))
    low, high = min(logs.min(), middle - spread), max(logs.max(), middle + spread)
    return {"low": round(math.exp(low), 6), "median": round(math.exp(middle), 6), "high": round(math.exp(high), 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Describes a model's training cases, as far as known.

    Attributes:
        cases: Number of training cases; 0 when unknown.
        labels: For each label name, ``present`` (cases that have it) and ``ml`` (:func:`label_range`).
        spacing: ``low`` and ``high`` mm in the reader's axis order.
        cv_dice: Cross-validated Dice of the model.
        intensities: Intensities of the foreground by channel number, as the plans have them.
        ct: Channels whose values have a unit.
        orders: Voxel orders of the training cases, such as ``RAS``; empty when unknown.
        not_judged: Reason why a flag cannot be checked, by its code.
    """

    cases: int = 0
    labels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    spacing: Mapping[str, Sequence[float]] | None = None
    cv_dice: float | None = None
    intensities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ct: frozenset[int] = frozenset()
    orders: frozenset[str] = frozenset()
    not_judged: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: SelectedModel) -> Expected:
        """Read ``reference.json`` and the files beside the plans."""
        folder = model.members[0].folder
        known = read_object(model.root / REFERENCE)
        plans = read_object(folder / "plans.json")
        spacing = known.get("spacing") or spacing_range(read_object(folder / "dataset_fingerprint.json").get("spacings") or [])
        configuration = _configuration(plans, model.members[0].configuration)
        schemes = configuration.get("normalization_schemes") or []
        intensities = {
            channel: values
            for channel, values in (plans.get("foreground_intensity_properties_per_channel") or {}).items()
            if {"percentile_00_5", "percentile_99_5"} <= set(values)
        }
        missing = {}
        if not known:
            missing["volume"] = f"the model has no {REFERENCE}; run FindBestConfigOperator again to make it"
        elif not any(label.get("ml") for label in (known.get("labels") or {}).values()):
            missing["volume"] = f"fewer than {_ENOUGH} training cases have a label, or they are pictures"
        if spacing is None:
            missing["spacing"] = "the spacings of the training cases are not known"
        if known and "orders" not in known:
            missing["voxel-order"] = f"the model's {REFERENCE} is of an earlier version; run FindBestConfigOperator again to make it"
        if not intensities:
            missing["intensity"] = "the plans have no intensities"
        if all(len(stage.folds) < 2 for stage in model.members):
            missing["folds-disagree"] = "the model predicts with one fold"
        return cls(
            cases=int(known.get("cases") or 0),
            labels=known.get("labels") or {},
            spacing=spacing,
            cv_dice=known.get("cv_dice"),
            intensities=intensities,
            ct=frozenset(number for number, scheme in enumerate(schemes) if scheme == "CTNormalization"),
            orders=frozenset(known.get("orders") or ()),
            not_judged=missing,
        )

    def flags(
        self,
        *,
        voxels: Mapping[str, int],
        volumes_ml: Mapping[str, float],
        spacing: Sequence[float],
        preview: Preview | None,
        segmentation: npt.NDArray[Any],
        agreement: Mapping[str, float],
        order: str = "",
    ) -> list[dict[str, Any]]:
        """Return all flags of a case.

        Args:
            voxels: Number of voxels by label name.
            volumes_ml: Volume in ml by label name.
            spacing: mm, in the reader's axis order.
            preview: Preview of the image, None when there is none.
            segmentation: Final segmentation, in the reader's axis order.
            order: Order of its voxels, such as ``RAS``; empty if the file has none.
            agreement: Mean pairwise Dice of the folds by label name; empty for one fold.
        """
        found = [*self._empty(voxels), *self._volume(volumes_ml), *self._folds(agreement), *self._spacing(spacing), *self._order(order)]
        if preview is not None:
            found += self._intensity(preview, segmentation)
        return [asdict(flag) for flag in found]

    def _empty(self, voxels: Mapping[str, int]) -> list[Flag]:
        if not any(voxels.values()):
            return [Flag(code="empty", message="nothing was found in it", value=0)]
        if self.cases < _ENOUGH:
            return []
        return [
            Flag(code="empty", message=f"{name} was not found", value=0, expected=f"in {known['present']} of {self.cases} training cases")
            for name, known in self.labels.items()
            if voxels.get(name) == 0 and known["present"] >= _NEARLY_ALL * self.cases
        ]

    def _volume(self, volumes_ml: Mapping[str, float]) -> list[Flag]:
        found = []
        for name, volume in volumes_ml.items():
            known = (self.labels.get(name) or {}).get("ml")
            if known and volume > 0 and not known["low"] <= volume <= known["high"]:
                how = "small" if volume < known["low"] else "large"
                message = f"{name} is unusually {how}: {volume:.4g} ml"
                found.append(Flag(code="volume", message=message, value=volume, expected=[known["low"], known["high"]]))
        return found

    def _folds(self, agreement: Mapping[str, float]) -> list[Flag]:
        if not agreement:
            return []
        mean = math.fsum(agreement.values()) / len(agreement)
        limit = _FOLD_DICE if self.cv_dice is None else min(_FOLD_DICE, _OF_CROSS_VALIDATION * self.cv_dice)
        if mean >= limit:
            return []
        worst = min(agreement, key=lambda name: agreement[name])
        message = f"the folds disagree: mean pairwise Dice {mean:.2f}, {worst} {agreement[worst]:.2f}"
        return [Flag(code="folds-disagree", message=message, value=round(mean, 4), expected=[round(limit, 4), 1.0])]

    def _spacing(self, spacing: Sequence[float]) -> list[Flag]:
        if self.spacing is None or len(self.spacing["low"]) != len(spacing):
            return []
        ends = list(zip(self.spacing["low"], self.spacing["high"], strict=True))
        if all(low / _SPACING <= step <= high * _SPACING for step, (low, high) in zip(spacing, ends, strict=True)):
            return []
        shown = " x ".join(f"{step:.3g}" for step in spacing)
        message = f"its spacing, {shown} mm, is beyond that of the training cases"
        return [Flag(code="spacing", message=message, value=[float(step) for step in spacing], expected=[list(end) for end in ends])]

    def _order(self, order: str) -> list[Flag]:
        if not order or not self.orders or order in self.orders:
            return []
        known = ", ".join(sorted(self.orders))
        message = f"its voxels are stored in the order {order}, those of the training cases in {known}; reorient it and predict again"
        return [Flag(code="voxel-order", message=message, value=order, expected=sorted(self.orders))]

    def _intensity(self, preview: Preview, segmentation: npt.NDArray[Any]) -> list[Flag]:
        inside = preview.at(segmentation) > 0
        found = []
        for number, image in enumerate(preview.channels):
            known = self.intensities.get(str(number))
            values = image[inside]
            if known is None or not values.size:
                continue
            ends = [known["percentile_00_5"], known["percentile_99_5"]]
            if number in self.ct:
                outside = float(np.mean((values < ends[0]) | (values > ends[1])))
                if outside > _OUTSIDE:
                    message = f"{outside:.0%} of the foreground of channel {number} lie outside the training cases' intensities"
                    found.append(Flag(code="intensity", message=message, value=round(float(np.median(values)), 4), expected=ends))
                continue
            middle = float(np.median(values))
            if middle > _TIMES * ends[1] > 0 or (middle < ends[0] / _TIMES and ends[0] > 0):
                how = f"{middle / ends[1]:.3g} times the largest" if middle > ends[1] else f"{middle / ends[0]:.3g} times the smallest"
                message = f"the foreground of channel {number} has {how} of the training cases' intensities"
                found.append(Flag(code="intensity", message=message, value=round(middle, 6), expected=ends))
        return found


def of_faults(odd: Sequence[Fault]) -> list[dict[str, Any]]:
    """Return the warnings of a case's files as flags."""
    return [asdict(Flag(code=str(fault.code), message=f"{fault.file} {fault.message}" if fault.file else fault.message)) for fault in odd]


def spacing_range(spacings: Sequence[Sequence[float]]) -> dict[str, list[float]] | None:
    """Return ``low`` and ``high`` by axis; None if there are no spacings."""
    if not spacings:
        return None
    known = np.asarray(spacings, dtype=np.float64)
    return {"low": known.min(axis=0).tolist(), "high": known.max(axis=0).tolist()}


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a plans entry together with the entries that it inherits."""
    entry: dict[str, Any] = (plans.get("configurations") or {}).get(name) or {}
    parent = entry.get("inherits_from")
    return {**_configuration(plans, parent), **entry} if parent and parent != name else dict(entry)
