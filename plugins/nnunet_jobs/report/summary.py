"""Summarises a case in a few kilobytes for the dataset's report, so that its images need not be read again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.report.arrays import Array, count_values, sample_of, steps_of, volume_of
from nnunet_jobs.report.picture import picture_of

VERSION = 1

_BINS = 32
_SLAB = 1 << 22  # voxels counted at once


def summarise_case(
    images: Sequence[Array], label: Array | None, spacing: Sequence[float], *, affine: Array | None = None
) -> dict[str, Any]:
    """Return what a report needs of one case, as JSON. Odd content gives an incomplete summary, never an error.

    Args:
        images: One array a channel, in nibabel's order x, y, z; x, y also works.
        label: Label of the same shape, or None.
        spacing: mm along x, y, z.
        affine: Voxel to RAS world; with it the picture lies as radiologists look at it (patient's right on the left,
            anterior or superior on top), without it as stored.

    Returns:
        ``version``; ``shape``; ``spacing`` (mm); ``channels``: for each ``min``, ``max``, ``mean``, ``percentiles`` (0.5, 5, 50, 95,
        99.5) and ``histogram`` (32 shares of the voxels, in thousandths, from the first to the last percentile), or None when no
        number is finite; ``labels``: value to ``voxels`` and ``ml`` (None without a valid spacing), background left out, or None
        without a label; ``picture``: ``axis``, ``view`` (None without an affine), ``slice``, ``size_mm`` (width, height), ``pixels``
        (width, height), ``mime``, ``data`` (base64), ``contours`` (value to SVG path in pixels); None without an image.
    """
    volumes = [volume_of(image) for image in images]
    mask = None if label is None else volume_of(label)
    shape = volumes[0].shape if volumes else mask.shape if mask is not None else (0, 0, 0)
    steps = steps_of(spacing)
    samples = [sample_of(volume) for volume in volumes]
    picture = picture_of(volumes, samples, mask, steps, affine)
    return {
        "version": VERSION,
        "shape": [int(n) for n in shape],
        "spacing": [round(step, 6) if math.isfinite(step) else None for step in steps],
        "channels": [_intensities(sample) for sample in samples],
        "labels": None if mask is None else _volumes_of(mask, steps),
        "picture": picture,
    }


def _intensities(sample: npt.NDArray[np.float64]) -> dict[str, Any] | None:
    if not sample.size:
        return None
    points = [float(value) for value in np.percentile(sample, (0.5, 5, 50, 95, 99.5))]
    low, high = points[0], points[-1]
    span = high - low
    if span > 0 and math.isfinite(span):
        places = np.clip((sample - low) * (_BINS / span), 0, _BINS - 1).astype(np.intp)
        counts = np.bincount(places, minlength=_BINS)
    else:
        counts = np.eye(1, _BINS, _BINS // 2)[0] * sample.size
    with np.errstate(over="ignore"):
        mean = float(sample.mean())
    return {
        "min": _short(sample.min()),
        "max": _short(sample.max()),
        "mean": _short(mean),
        "percentiles": [_short(value) for value in points],
        "histogram": [round(float(count) * 1000 / sample.size, 1) for count in counts],
    }


def _volumes_of(mask: Array, spacing: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Count voxels and millilitres of each label value except 0 exactly, slab by slab to save memory."""
    total = np.zeros(1, dtype=np.int64)
    if mask.size and mask.dtype.kind in "biuf":
        thick = max(1, _SLAB // max(1, mask.shape[0] * mask.shape[1]))
        for start in range(0, mask.shape[2], thick):
            counts = count_values(mask[:, :, start : start + thick])
            if counts.size > total.size:
                total, counts = counts, total
            total[: counts.size] += counts
    millilitre = math.prod(spacing) / 1000
    return {
        str(value): {
            "voxels": int(total[value]),
            "ml": round(float(total[value]) * millilitre, 4) if math.isfinite(millilitre) else None,
        }
        for value in np.flatnonzero(total)
        if value
    }


def _short(value: float) -> float:
    """Round to five significant digits, as many as a report shows. Infinity becomes a finite number for JSON."""
    number = float(value)
    if not math.isfinite(number):
        number = math.copysign(1.7e308, number)
    return float(f"{number:.5g}")
