"""Arrays of voxels as summaries and pictures look at them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_SAMPLE = 1 << 18  # voxels of a channel that intensity statistics use
_LARGEST_LABEL = 1 << 16


def steps_of(spacing: Sequence[float]) -> tuple[float, ...]:
    """Three spacings; NaN for one that is missing or impossible."""
    return tuple(float(step) if math.isfinite(step) and step > 0 else math.nan for step in [*spacing, *(math.nan,) * 3][:3])


def volume_of(array: Array) -> Array:
    """Three dimensions, whatever came."""
    array = np.asanyarray(array)
    if array.ndim > 3:
        array = array[(slice(None),) * 3 + (0,) * (array.ndim - 3)] if all(array.shape[3:]) else np.zeros((0, 0, 0))
    return array.reshape(array.shape + (1,) * (3 - array.ndim))


def sample_of(volume: Array) -> npt.NDArray[np.float64]:
    """Return finite voxels on a grid that is coarse enough to be fast."""
    if volume.dtype.kind not in "biuf" or not volume.size:
        return np.empty(0)
    step = math.ceil((volume.size / _SAMPLE) ** (1 / 3))
    values = volume[tuple(slice((min(step, n) - 1) // 2, None, min(step, n)) for n in volume.shape)].astype(np.float64)
    return values[np.isfinite(values)]


def count_values(slab: Array) -> npt.NDArray[np.int64]:
    """Count voxels of each value from 0; other values (negative, huge, not integers) are left out and reported by the check."""
    flat = slab.ravel(order="K")
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat) & (flat == np.rint(flat))]
    if flat.dtype not in (np.uint8, np.uint16, np.bool_):
        flat = flat[(flat >= 0) & (flat < _LARGEST_LABEL)]
    return np.bincount(flat.astype(np.intp)).astype(np.int64) if flat.size else np.zeros(1, dtype=np.int64)
