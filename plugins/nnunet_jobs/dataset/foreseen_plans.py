"""Predicts from shapes and spacings which plans nnU-Net will make of a dataset, without importing nnU-Net."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from nnunet_jobs.dataset.readers.volume import shown_mm

_FLAT_SPACING = 999.0  # times the pixel size: the spacing that nnU-Net's readers give the third axis of a 2D image
_SMALLEST_MAP = 4  # voxels along an edge of the last feature map (nnU-Net's UNet_featuremap_min_edge_length)
_STAGES = 3  # with fewer, deep supervision has no output of lower resolution that counts, and its weights become NaN


def nnunet_spacing(spacing: Sequence[float], *, planar: bool) -> tuple[float, ...]:
    """Return the spacing in mm along x, y, z as nnU-Net's reader gives it."""
    return (*spacing[:2], _FLAT_SPACING * max(spacing[:2])) if planar else tuple(spacing)


def across_the_slice(shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]]) -> dict[int, str]:
    """Find single-slice cases whose plane nnU-Net's 2D network would not see, by index in the list, each with the reason.

    nnU-Net cuts volumes across the axis with the largest median spacing (``ExperimentPlanner.determine_transpose``), whatever the
    shape; of equal spacings it takes the last axis of the file. For a slice along another axis, patches become lines.

    Args:
        shapes: Voxels along x, y, z.
        spacings: mm, as nnU-Net's reader gives them.
    """
    target = _median(spacings)
    cut = max((2, 1, 0), key=lambda axis: target[axis])  # nnU-Net's arrays are z, y, x
    found = {}
    for place, (shape, spacing) in enumerate(zip(shapes, spacings, strict=True)):
        thin = [axis for axis in range(3) if shape[axis] == 1]
        if not thin or cut in thin:
            continue
        plane = [spacing[axis] for axis in range(3) if axis != thin[0]]
        found[place] = (
            f"is a single slice along {'xyz'[thin[0]]}, {spacing[thin[0]]:g} mm thick, with pixels of {shown_mm(plane)}: nnU-Net "
            f"cuts along {'xyz'[cut]}, where voxels are largest, so that its 2D network would see lines; "
            "write the image with two axes, or give the slice a thickness larger than its pixels"
        )
    return found


def too_small(shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]]) -> str | None:
    """Say why the images are too small for nnU-Net's networks and usual training; None if they are not."""
    target = _median(spacings)
    grown = [
        [n * mm / to for n, mm, to in zip(shape, spacing, target, strict=True)] for shape, spacing in zip(shapes, spacings, strict=True)
    ]
    shape = _median(grown)
    cut = max((2, 1, 0), key=lambda axis: target[axis])
    plane = [axis for axis in range(3) if axis != cut]
    planned = {"2d": [[values[axis] for axis in plane] for values in (shape, target)]}
    if min(round(n) for n in shape) > 1:
        planned["3d_fullres"] = [shape, target]
    stages = {name: unet_stages(*what) for name, what in planned.items()}
    small = {name: count for name, count in stages.items() if count < _STAGES}
    if not small:
        return None
    what = " and ".join(f"{name} with {count} stage{'s'[: count != 1]}" for name, count in small.items())
    enough = _SMALLEST_MAP << (_STAGES - 1)
    other = ", or train with nnUNetTrainerNoDeepSupervision" if min(small.values()) > 1 else ""  # a U-Net needs two stages
    return (
        f"the median image has {tuple(round(n) for n in shape)} voxels, for which nnU-Net plans {what}, where its usual training needs "
        f"{_STAGES}: pad images and labels to {enough} voxels or more along two axes{other}"
    )


def unet_stages(shape: Sequence[float], spacing: Sequence[float]) -> int:
    """Return the number of stages of the U-Net that nnU-Net plans for a patch of this shape (voxels) and spacing (mm).

    Counts as nnU-Net's ``network_topology.get_pool_and_conv_props`` does: an axis is halved while it has eight voxels or more
    and is not twice as coarse as the finest axis that can be halved; a single remaining axis needs twelve voxels.
    """
    size, mm, stages = [round(n) for n in shape], list(spacing), 1
    while True:
        axes = [axis for axis in range(len(size)) if size[axis] >= 2 * _SMALLEST_MAP]
        finest = min((mm[axis] for axis in axes), default=0.0)
        axes = [axis for axis in axes if mm[axis] / finest < 2]
        if not axes or (len(axes) == 1 and size[axes[0]] < 3 * _SMALLEST_MAP):
            return stages
        for axis in axes:
            size[axis], mm[axis] = math.ceil(size[axis] / 2), 2 * mm[axis]
        stages += 1


def _resampled(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> list[float]:
    return [voxels * mm / to for voxels, mm, to in zip(shape, spacing, target, strict=True)]


def _median(rows: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*rows, strict=True)]
