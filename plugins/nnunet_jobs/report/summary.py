"""A case in a few kilobytes: what the dataset's report shows of it, so that nobody has to read the images again."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 1
Array = npt.NDArray[Any]

_SAMPLE = 1 << 18  # voxels of a channel that intensity statistics look at
_BINS = 32
_THUMBNAIL = 96  # pixels
_PNG_BYTES = 4096  # a larger thumbnail becomes a JPEG: noise does not compress
_CONTOUR_CHARS = 16_384  # of all outlines of a picture
_LARGEST_LABEL = 1 << 16
_SLAB = 1 << 22  # voxels counted at once
_THICK = 1.5  # a spacing so many times the others' says which way the slices lie
_SOFT_TISSUE, _LUNG = (-200.0, 300.0), (-1200.0, 300.0)  # HU
_WORLD = ("sagittal", "coronal", "axial")


def summarise_case(
    images: Sequence[Array], label: Array | None, spacing: Sequence[float], *, affine: Array | None = None
) -> dict[str, Any]:
    """What a report needs to know of one case, as JSON. Odd content gives a summary with gaps, never an error.

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
    volumes = [_volume(image) for image in images]
    mask = None if label is None else _volume(label)
    shape = volumes[0].shape if volumes else mask.shape if mask is not None else (0, 0, 0)
    steps = _steps(spacing)
    samples = [_sample(volume) for volume in volumes]
    picture = _picture(volumes, samples, mask, steps, affine)
    return {
        "version": VERSION,
        "shape": [int(n) for n in shape],
        "spacing": [round(step, 6) if math.isfinite(step) else None for step in steps],
        "channels": [_intensities(sample) for sample in samples],
        "labels": None if mask is None else _volumes_of(mask, steps),
        "picture": picture,
    }


def case_picture(
    images: Sequence[Array], label: Array | None, spacing: Sequence[float], *, affine: Array | None = None
) -> dict[str, Any] | None:
    """The ``picture`` of :func:`summarise_case` alone."""
    volumes = [_volume(image) for image in images]
    mask = None if label is None else _volume(label)
    return _picture(volumes, [_sample(volume) for volume in volumes], mask, _steps(spacing), affine)


def _steps(spacing: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(step) if math.isfinite(step) and step > 0 else math.nan for step in [*spacing, *(math.nan,) * 3][:3])


def _volume(array: Array) -> Array:
    """Three dimensions, whatever came."""
    array = np.asanyarray(array)
    if array.ndim > 3:
        array = array[(slice(None),) * 3 + (0,) * (array.ndim - 3)] if all(array.shape[3:]) else np.zeros((0, 0, 0))
    return array.reshape(array.shape + (1,) * (3 - array.ndim))


def _sample(volume: Array) -> npt.NDArray[np.float64]:
    """Finite voxels on a grid that is coarse enough to be quick."""
    if volume.dtype.kind not in "biuf" or not volume.size:
        return np.empty(0)
    step = math.ceil((volume.size / _SAMPLE) ** (1 / 3))
    values = volume[tuple(slice((min(step, n) - 1) // 2, None, min(step, n)) for n in volume.shape)].astype(np.float64)
    return values[np.isfinite(values)]


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
    """Voxels and millilitres of each label value but 0, counted exactly, slab by slab so that memory stays small."""
    total = np.zeros(1, dtype=np.int64)
    if mask.size and mask.dtype.kind in "biuf":
        thick = max(1, _SLAB // max(1, mask.shape[0] * mask.shape[1]))
        for start in range(0, mask.shape[2], thick):
            counts = _count(mask[:, :, start : start + thick])
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


def _count(slab: Array) -> npt.NDArray[np.int64]:
    """Voxels of each value from 0; what is no label value (negative, huge, not whole) is left out, the check reports it."""
    flat = slab.ravel(order="K")
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat) & (flat == np.rint(flat))]
    if flat.dtype not in (np.uint8, np.uint16, np.bool_):
        flat = flat[(flat >= 0) & (flat < _LARGEST_LABEL)]
    return np.bincount(flat.astype(np.intp)).astype(np.int64) if flat.size else np.zeros(1, dtype=np.int64)


# --- the picture ----------------------------------------------------------------------------------------------------
def _picture(
    volumes: Sequence[Array], samples: Sequence[npt.NDArray[np.float64]], mask: Array | None, spacing: Sequence[float], affine: Array | None
) -> dict[str, Any] | None:
    if not volumes or not volumes[0].size:
        return None
    if mask is not None and (mask.shape != volumes[0].shape or mask.dtype.kind not in "biuf"):
        mask = None
    world = _world(affine)
    axis = _slice_axis(volumes[0].shape, spacing, world)
    place = _busiest_slice(volumes[0], mask, axis)
    columns, rows = sorted((other for other in range(3) if other != axis), key=lambda other: world[other][0])
    flips = [world[other][1] for other in (rows, columns)]

    def plane(volume: Array) -> Array:
        flat = np.moveaxis(volume, (rows, columns, axis), (0, 1, 2))[:, :, place]
        return flat[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]

    colour = volumes[0].shape[axis] == 1 and len(volumes) == 3 and all(_is_byte(s) for s in samples) and _same_shape(volumes)
    outline = plane(mask) if mask is not None else None
    if colour:
        pixels = np.stack([np.clip(plane(volume), 0, 255) for volume in volumes], axis=-1).astype(np.uint8)
    else:
        grey = plane(volumes[0])
        pixels = _windowed(grey, outline) if grey.dtype.kind in "biuf" else np.zeros(grey.shape, dtype=np.uint8)
    height, width = pixels.shape[:2]
    size = (min(width, _THUMBNAIL), min(height, _THUMBNAIL))
    mime, data = _encode(pixels, size)
    steps = [step if math.isfinite(step) else 1.0 for step in spacing]
    return {
        "axis": axis,
        "view": _WORLD[world[axis][0]] if affine is not None and min(volumes[0].shape) > 1 else None,
        "slice": place,
        "size_mm": [round(width * steps[columns], 3), round(height * steps[rows], 3)],
        "pixels": list(size),
        "mime": mime,
        "data": base64.b64encode(data).decode(),
        "contours": {} if outline is None else _contours(outline, size),
    }


def _world(affine: Array | None) -> list[tuple[int, bool]]:
    """For each voxel axis: the world axis it is nearest to, and whether the picture must be flipped along it."""
    if affine is None or affine.shape[0] < 3 or affine.shape[1] < 3 or not np.isfinite(affine[:3, :3]).all():
        return [(0, False), (1, False), (2, False)]
    weights = np.abs(affine[:3, :3]) / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
    nearest = [0, 0, 0]
    for _ in range(3):
        world, voxel = (int(n) for n in np.unravel_index(np.argmax(weights), weights.shape))
        nearest[voxel] = world
        weights[world, :], weights[:, voxel] = -1, -1
    # Radiologists see the patient from the feet, or from the left: every direction of the RAS world runs up or leftwards.
    return [(world, bool(affine[world, voxel] > 0)) for voxel, world in enumerate(nearest)]


def _slice_axis(shape: Sequence[int], spacing: Sequence[float], world: Sequence[tuple[int, bool]]) -> int:
    """The axis that has one voxel, else the one with thick slices, else from feet to head."""
    if min(shape) == 1:
        return [axis for axis in range(3) if shape[axis] == 1][-1]
    known = [step if math.isfinite(step) else 0.0 for step in spacing]
    thickest = int(np.argmax(known))
    if known[thickest] >= _THICK * sorted(known)[1]:
        return thickest
    return next(axis for axis in range(3) if world[axis][0] == 2)


def _busiest_slice(volume: Array, mask: Array | None, axis: int) -> int:
    """The slice with most label voxels; the middle where there is none."""
    if mask is not None:
        counts = [np.count_nonzero(section) for section in np.moveaxis(mask, axis, 0)]
        if any(counts):
            return int(np.argmax(counts))
    return int(volume.shape[axis]) // 2


def _is_byte(sample: npt.NDArray[np.float64]) -> bool:
    return bool(sample.size and sample.min() >= 0 and sample.max() <= 255)


def _windowed(grey: Array, outline: Array | None) -> npt.NDArray[np.uint8]:
    """8 bits: the slice's own range without its extremes; soft tissue or lung where the numbers are Hounsfield units."""
    values = grey.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(grey.shape, dtype=np.uint8)
    low, high = (float(value) for value in np.percentile(values[finite], (0.5, 99.5)))
    if -3100 <= low <= -700 and 0 <= high <= 4000:  # padding may be -3024
        inside = values[finite & (outline != 0)] if outline is not None else values[:0, 0]
        low, high = _LUNG if inside.size and float(np.median(inside)) < _SOFT_TISSUE[0] else _SOFT_TISSUE
    span = high - low
    if not 0 < span < math.inf:
        return np.where(finite, 128, 0).astype(np.uint8)
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (255 / span)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _encode(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> tuple[str, bytes]:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    if buffer.tell() <= _PNG_BYTES:
        return "image/png", buffer.getvalue()
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80, optimize=True)
    return "image/jpeg", buffer.getvalue()


def _contours(outline: Array, size: tuple[int, int]) -> dict[str, str]:
    """Outlines along the pixels' edges, largest label first until the budget is spent. Downsampling keeps the smallest lesion."""
    counts = _count(outline)
    values = [int(value) for value in np.argsort(counts, kind="stable")[::-1] if value and counts[value]]
    paths: dict[str, str] = {}
    left = _CONTOUR_CHARS
    for value in values:
        region = _shrink(_shrink(outline == value, size[1]).T, size[0]).T
        path = _edges(region, left)
        if len(path) <= left:
            paths[str(value)] = path
            left -= len(path)
    return paths


def _shrink(region: Array, rows: int) -> Array:
    """Fewer rows; a row is set where any of those that fall on it is."""
    if len(region) == rows:
        return region
    shrunk: Array = np.logical_or.reduceat(region, np.arange(rows) * len(region) // rows, axis=0)
    return shrunk


def _edges(region: Array, limit: int) -> str:
    """SVG path of the lines between a region's pixels and the others, runs of edges joined; cut off soon after ``limit`` characters."""
    padded = np.pad(region, 1).astype(np.int8)
    parts, length = list[str](), 0
    for across in (False, True):
        border = np.diff(padded.T if across else padded, axis=0)[:, 1:-1] != 0
        runs = np.diff(np.pad(border, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        begins, ends = np.argwhere(runs == 1), np.argwhere(runs == -1)
        for (line, begin), (_, end) in zip(begins.tolist(), ends.tolist(), strict=True):
            parts.append(f"M{line} {begin}v{end - begin}" if across else f"M{begin} {line}h{end - begin}")
            length += len(parts[-1])
            if length > limit:
                return "".join(parts)
    return "".join(parts)


def _same_shape(volumes: Sequence[Array]) -> bool:
    return len({volume.shape for volume in volumes}) == 1


def _short(value: float) -> float:
    """Five significant digits: a report shows no more. Infinity stays finite for JSON."""
    number = float(value)
    if not math.isfinite(number):
        number = math.copysign(1.7e308, number)
    return float(f"{number:.5g}")
