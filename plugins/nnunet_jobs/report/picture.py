"""The picture of a case: one slice as a thumbnail, with the outlines of the labels."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.report.arrays import Array, count_values, sample_of, steps_of, volume_of

_THUMBNAIL = 96  # pixels
_PNG_BYTES = 4096  # a larger thumbnail becomes a JPEG: noise does not compress
_CONTOUR_CHARS = 16_384  # of all outlines of a picture
_THICK = 1.5  # a spacing so many times the others' shows the direction of the slices
_SOFT_TISSUE, _LUNG = (-200.0, 300.0), (-1200.0, 300.0)  # HU
_WORLD = ("sagittal", "coronal", "axial")


def case_picture(
    images: Sequence[Array], label: Array | None, spacing: Sequence[float], *, affine: Array | None = None
) -> dict[str, Any] | None:
    """Return only the ``picture`` of :func:`summarise_case`."""
    volumes = [volume_of(image) for image in images]
    mask = None if label is None else volume_of(label)
    return picture_of(volumes, [sample_of(volume) for volume in volumes], mask, steps_of(spacing), affine)


def picture_of(
    volumes: Sequence[Array], samples: Sequence[npt.NDArray[np.float64]], mask: Array | None, spacing: Sequence[float], affine: Array | None
) -> dict[str, Any] | None:
    """The picture of arrays that :func:`volume_of` and :func:`sample_of` gave; None without an image."""
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
    """Return for each voxel axis the nearest world axis, and whether the picture must be flipped along it."""
    if affine is None or affine.shape[0] < 3 or affine.shape[1] < 3 or not np.isfinite(affine[:3, :3]).all():
        return [(0, False), (1, False), (2, False)]
    weights = np.abs(affine[:3, :3]) / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
    nearest = [0, 0, 0]
    for _ in range(3):
        world, voxel = (int(n) for n in np.unravel_index(np.argmax(weights), weights.shape))
        nearest[voxel] = world
        weights[world, :], weights[:, voxel] = -1, -1
    # Radiologists look at the patient from the feet, or from the left: every direction of RAS points up or left.
    return [(world, bool(affine[world, voxel] > 0)) for voxel, world in enumerate(nearest)]


def _slice_axis(shape: Sequence[int], spacing: Sequence[float], world: Sequence[tuple[int, bool]]) -> int:
    """Return the axis that has one voxel, else the one with thick slices, else from feet to head."""
    if min(shape) == 1:
        return [axis for axis in range(3) if shape[axis] == 1][-1]
    known = [step if math.isfinite(step) else 0.0 for step in spacing]
    thickest = int(np.argmax(known))
    if known[thickest] >= _THICK * sorted(known)[1]:
        return thickest
    return next(axis for axis in range(3) if world[axis][0] == 2)


def _busiest_slice(volume: Array, mask: Array | None, axis: int) -> int:
    """Return the slice with most label voxels; the middle one if there are none."""
    if mask is not None:
        counts = [np.count_nonzero(section) for section in np.moveaxis(mask, axis, 0)]
        if any(counts):
            return int(np.argmax(counts))
    return int(volume.shape[axis]) // 2


def _is_byte(sample: npt.NDArray[np.float64]) -> bool:
    return bool(sample.size and sample.min() >= 0 and sample.max() <= 255)


def _windowed(grey: Array, outline: Array | None) -> npt.NDArray[np.uint8]:
    """Convert to 8 bits: the slice's range without extremes, or soft tissue or lung if the values are Hounsfield units."""
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
    """Draw outlines along the pixels' edges, largest label first, up to the limit. Downsampling keeps the smallest lesion."""
    counts = count_values(outline)
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
    """Reduce the rows; a pixel is set if any of its original rows has it set."""
    if len(region) == rows:
        return region
    shrunk: Array = np.logical_or.reduceat(region, np.arange(rows) * len(region) // rows, axis=0)
    return shrunk


def _edges(region: Array, limit: int) -> str:
    """Return an SVG path around a region's pixels, with joined edges; it ends soon after ``limit`` characters."""
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
