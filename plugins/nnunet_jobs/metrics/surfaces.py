"""How far a segmentation's surface is from its reference's, by label: NSD, HD95, mean surface distance, and volumes.

Definitions (docs/concepts/metrics.md explains them):

- The surface runs between voxels. Its elements and their areas are those of :mod:`nnunet_jobs.metrics.surface_elements`; every mean,
  share and percentile below is weighted by area. The edge of the image is a surface where a label reaches it.
- ``nsd``: area of both surfaces that lies within the tolerance of the other one, divided by the area of both (Nikolov et al. 2018).
- ``hd95_mm``: the 95th percentile of the distances of each surface to the other, and of these two the larger one.
- ``mean_surface_distance_mm``: mean over the elements of both surfaces together (average symmetric surface distance).
- ``volume_difference_ml``: prediction minus reference; ``volume_difference_relative``: that divided by the reference.
- A label that neither has: every value is None. One that only one of them has: Dice and NSD are 0, distances None (they are infinite).
- Where the reference has the ignore label nothing counts: no voxel, and no surface in a cell that touches it.
- An axis of one voxel is no direction: the image is compared in the plane, by lengths of contours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunet_jobs.metrics.nearest import Nearest
from nnunet_jobs.metrics.surface_elements import Lattice, areas, bordered, mixed_cells

IMPLEMENTATION = "nnunet_jobs.metrics.surfaces 1 (surface elements, percentiles and NSD as in DeepMind surface-distance 0.1)"
"""Name and version of the definitions; the number rises whenever a value may come out different."""

DEFAULT_TOLERANCE_MM = 1.0
_MARGIN = 2  # cells: what is further away is rare where segmentations resemble each other
_LARGEST = 65535
_CHUNK = 2**19  # voxels: such a chunk and its comparison stay in a core's cache
_ROUNDING_MM = 1e-6  # headers keep spacings in 32 bits: a distance of exactly the tolerance must not miss it by that

Label = int | tuple[int, ...]


def surface_metrics(
    reference: Any,
    prediction: Any,
    spacing: Sequence[float],
    labels: Sequence[Label],
    *,
    tolerance_mm: float | Sequence[float] = DEFAULT_TOLERANCE_MM,
    ignore_label: int | None = None,
) -> dict[Label, dict[str, float | None]]:
    """Compare two segmentations of one image, label by label.

    Args:
        reference: Array of two or three axes with a label in each voxel, 0 to 65535, of any type of number.
        prediction: The same of the prediction.
        spacing: Distance between voxels in mm, in the order of the array's axes.
        labels: Labels, or regions as tuples of the labels that they are made of, without background.
        tolerance_mm: Distance up to which a surface counts as right: one number, or one for each label.
        ignore_label: Label of the reference that marks voxels which count nowhere.

    Returns:
        By label ``dice``, ``nsd``, ``hd95_mm``, ``mean_surface_distance_mm``, ``reference_ml``, ``prediction_ml``,
        ``volume_difference_ml``, ``volume_difference_relative``. None where a value is undefined or infinite, and millilitres of a
        two-dimensional array.

    Raises:
        ValueError: The shapes differ, the spacing does not fit them, or a value is no label.
    """
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    _check(reference, prediction, spacing)
    tolerances = [float(tolerance_mm)] * len(labels) if isinstance(tolerance_mm, int | float) else [float(one) for one in tolerance_mm]
    voxel_ml = math.prod(spacing) / 1000 if reference.ndim == 3 else None
    volumes, lattice = _prepared(reference, prediction, spacing, labels, ignore_label)
    counts = _Counts(*volumes)
    surfaces = [_Cells(volume, cells, lattice, ignore_label) for volume, cells in zip(volumes, mixed_cells(*volumes), strict=True)]
    nearest, area_of = Nearest(lattice), areas(lattice.spacing)
    result: dict[Label, dict[str, float | None]] = {}
    for label, tolerance in zip(labels, tolerances, strict=True):
        values = _values(label)
        result[label] = {
            **_overlap(*counts.of(values), voxel_ml),
            **_distances([surface.elements(values) for surface in surfaces], nearest, area_of, tolerance),
        }
    return result


class _Counts:
    """Voxels of labels, counted without a look at each voxel for each label where the two agree."""

    def __init__(self, reference: Any, prediction: Any) -> None:
        self._reference = reference.ravel()
        self._sizes: dict[int, int] = {}
        wrong = [
            start + np.flatnonzero(reference.ravel()[start : start + _CHUNK] != prediction.ravel()[start : start + _CHUNK])
            for start in range(0, reference.size, _CHUNK)
        ]
        places = np.concatenate(wrong)
        self._wrong = reference.ravel()[places], prediction.ravel()[places]

    def of(self, values: Sequence[int]) -> tuple[int, int, int]:
        """(voxels of the reference, of the prediction, of both)."""
        size = sum(self._size(value) for value in values)
        in_reference, in_prediction = (np.isin(wrong, values) for wrong in self._wrong)
        missed = int(np.count_nonzero(in_reference & ~in_prediction))
        added = int(np.count_nonzero(in_prediction & ~in_reference))
        return size, size - missed + added, size - missed

    def _size(self, value: int) -> int:
        if value not in self._sizes:
            chunks = range(0, self._reference.size, _CHUNK)
            self._sizes[value] = sum(int(np.count_nonzero(self._reference[start : start + _CHUNK] == value)) for start in chunks)
        return self._sizes[value]


class _Cells:
    """The cells of one segmentation that hold a surface, whatever label's."""

    def __init__(self, volume: Any, cells: Any, lattice: Lattice, ignore_label: int | None) -> None:
        voxels = [volume.ravel()[cells + step] for step in lattice.corners]
        if ignore_label is not None:
            counted = np.logical_and.reduce([voxel != ignore_label for voxel in voxels])
            cells, voxels = cells[counted], [voxel[counted] for voxel in voxels]
        self._cells, self._voxels = cells, voxels

    def elements(self, values: Sequence[int]) -> tuple[Any, Any]:
        """(cells that a label's surface passes, their codes)."""
        codes = np.zeros(len(self._cells), np.uint8)
        for number, voxel in enumerate(self._voxels):
            inside = voxel == values[0] if len(values) == 1 else np.isin(voxel, values)
            codes |= inside.view(np.uint8) << np.uint8(number)
        passed = (codes != 0) & (codes != 2 ** len(self._voxels) - 1)
        return self._cells[passed], codes[passed]


def _overlap(reference: int, prediction: int, both: int, voxel_ml: float | None) -> dict[str, float | None]:
    if reference + prediction == 0:
        return dict.fromkeys(("dice", "reference_ml", "prediction_ml", "volume_difference_ml", "volume_difference_relative"))
    volumes = [None if voxel_ml is None else voxels * voxel_ml for voxels in (reference, prediction, prediction - reference)]
    return {
        "dice": 2 * both / (reference + prediction),
        **dict(zip(("reference_ml", "prediction_ml", "volume_difference_ml"), volumes, strict=True)),
        "volume_difference_relative": (prediction - reference) / reference if reference else None,
    }


def _distances(sets: Sequence[tuple[Any, Any]], nearest: Nearest, area_of: Any, tolerance_mm: float) -> dict[str, float | None]:
    if not all(len(cells) for cells, _ in sets):
        none = not any(len(cells) for cells, _ in sets)
        return {"nsd": None if none else 0.0, "hd95_mm": None, "mean_surface_distance_mm": None}
    (reference, _), (prediction, _) = sets
    distances = [nearest(reference, prediction), nearest(prediction, reference)]
    weights = [area_of[codes] for _, codes in sets]
    area = sum(float(weight.sum()) for weight in weights)
    near = sum(float(weight[found <= tolerance_mm + _ROUNDING_MM].sum()) for found, weight in zip(distances, weights, strict=True))
    total = sum(float(found @ weight) for found, weight in zip(distances, weights, strict=True))
    return {
        "nsd": near / area,
        "hd95_mm": max(_percentile(found, weight, 0.95) for found, weight in zip(distances, weights, strict=True)),
        "mean_surface_distance_mm": total / area,
    }


def _percentile(distances: Any, weights: Any, share: float) -> float:
    """The smallest distance below or at which the share of the weight lies."""
    order: Any = np.argsort(distances)
    reached: Any = np.cumsum(weights[order])
    place = int(np.searchsorted(reached / reached[-1], share))
    return float(distances[order[min(place, len(order) - 1)]])


def _prepared(
    reference: Any, prediction: Any, spacing: Sequence[float], labels: Sequence[Label], ignore_label: int | None
) -> tuple[tuple[Any, Any], Lattice]:
    """Both segmentations cut to their common foreground, as small integers with a border, and the lattice of their cells."""
    smallest, largest = (int(extreme(np.array([extreme(reference), extreme(prediction)]))) for extreme in (np.min, np.max))
    if smallest < 0 or largest > _LARGEST:
        raise ValueError(f"labels are 0 to {_LARGEST}, and these arrays hold {smallest} to {largest}")
    largest = max([largest, ignore_label or 0, *(value for label in labels for value in _values(label))])
    kind = np.uint8 if largest < 256 else np.uint16
    axes = sorted(range(reference.ndim), key=lambda axis: -abs(reference.strides[axis]))  # the fastest axis last, whatever the order
    axes = [axis for axis in axes if reference.shape[axis] > 1] if 1 in reference.shape else axes
    axes += [axis for axis in range(reference.ndim) if axis not in axes][: max(0, 2 - len(axes))]
    dropped = tuple(axis for axis in range(reference.ndim) if axis not in axes)
    order = [*axes, *dropped]
    reference, prediction = (volume.transpose(order).reshape([volume.shape[axis] for axis in axes]) for volume in (reference, prediction))
    window = _window(reference, prediction)
    volumes = (bordered(reference[window], _MARGIN, kind), bordered(prediction[window], _MARGIN, kind))
    if ignore_label is not None:
        volumes[1][volumes[1] == ignore_label] = 0
        volumes[1][volumes[0] == ignore_label] = ignore_label
    return volumes, Lattice(shape=volumes[0].shape, spacing=tuple(float(spacing[axis]) for axis in axes), margin=_MARGIN)


def _window(reference: Any, prediction: Any) -> Any:
    """Slices of the smallest part of the arrays outside which both are background."""
    plane: Any = np.zeros(reference.shape[1:], np.result_type(reference, prediction))
    used_planes: list[int] = []
    for number, pair in enumerate(zip(reference, prediction, strict=True)):
        either = np.maximum(*pair)
        if either.any():
            used_planes.append(number)
            np.maximum(plane, either, out=plane)
    if not used_planes:
        return (slice(0, 1),) * reference.ndim
    used_axes: list[Any] = [used_planes]
    for axis in range(plane.ndim):
        used_axes.append(np.flatnonzero(plane.any(axis=tuple(other for other in range(plane.ndim) if other != axis))))
    return tuple(slice(int(used[0]), int(used[-1]) + 1) for used in used_axes)


def _values(label: Label) -> tuple[int, ...]:
    return label if isinstance(label, tuple) else (label,)


def _check(reference: Any, prediction: Any, spacing: Sequence[float]) -> None:
    if reference.shape != prediction.shape:
        raise ValueError(f"the segmentations have different shapes: {reference.shape} and {prediction.shape}")
    if reference.ndim not in (2, 3) or len(spacing) != reference.ndim or not reference.size:
        raise ValueError(f"{len(spacing)} spacings do not fit an array of shape {reference.shape}; two or three axes are compared")
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"a spacing must be more than 0 mm: {tuple(spacing)}")
