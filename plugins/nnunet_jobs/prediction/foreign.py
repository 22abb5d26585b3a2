"""Checks images from outside between nnU-Net's reader and its resampling, since both trust whatever the header says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_jobs.contract.failure import DataError, JobError
from nnunet_jobs.dataset.readers.volume import shown_mm
from nnunet_jobs.devices import host

# Bytes of a resampled voxel: float32 before and after, float64 during resampling.
_BYTES = 16
_MIB = 1 << 20


def run_case(preprocessor: Any, images: Sequence[str], *more: Any, on_image: Callable[[Any], None] | None = None) -> Any:
    """Run nnU-Net's ``run_case`` on an image from outside; the reader's errors and impossible spacings are the image's faults.

    Args:
        preprocessor: New preprocessor, nnU-Net's or a site's own.
        more: Arguments of ``run_case`` after the images.
        on_image: Called with the image as it was read, (channel, z, y, x).

    Raises:
        DataError: nnU-Net's reader refuses it, although its bytes are whole; or see :func:`require_extent`.
    """
    was_read = False
    work = preprocessor.run_case_npy

    def looked_at(data: Any, seg: Any, properties: Mapping[str, Any], plans: Any, configuration: Any, *rest: Any, **named: Any) -> Any:
        nonlocal was_read
        was_read = True
        if on_image is not None:
            on_image(data)
        require_extent(data, properties["spacing"], plans.transpose_forward, configuration.spacing)
        return work(data, seg, properties, plans, configuration, *rest, **named)

    preprocessor.run_case_npy = looked_at
    try:
        return preprocessor.run_case(list(images), *more)
    except (JobError, MemoryError, OSError):
        raise
    except Exception as error:  # readers raise many types
        if was_read:
            raise
        words = (str(error).strip() or "it gives no reason").splitlines()[-1]  # the last line of ITK's message has the reason
        for path in images:
            words = words.replace(path, Path(path).name)
        raise DataError(f"nnU-Net's reader refuses it: {words}") from error


def require_extent(data: Any, spacing: Any, transpose: Any, target: Any) -> None:
    """Refuse an image that would be empty at the model's spacing, or larger than this host's memory.

    Args:
        data: (channel, z, y, x) as it was read.
        spacing: Spacing in mm, in the same order.
        transpose: nnU-Net's order of the axes.
        target: The model's spacing in that order; a 2D model's has no first axis, whose spacing is kept.

    Raises:
        DataError: The image is refused; the message has the spacing and the size.
    """
    own = [float(spacing[axis]) for axis in transpose]
    wanted = [*own[: len(own) - len(target)], *map(float, target)]
    ratios = [mine / other for mine, other in zip(own, wanted, strict=True)]
    shape = [data.shape[1 + axis] for axis in transpose]
    if min(ratios) < 0.5:  # nnU-Net first crops the zeros around the image, so little may be left
        shape = _extent_of_nonzero(data, transpose)
    found = [round(ratio * size) for ratio, size in zip(ratios, shape, strict=True)]
    said = (
        f"the spacing in its header is {shown_mm(own)}, the model's {shown_mm(wanted)}: "
        f"the image has {_by(shape)} voxels, and would have {_by(found)} at the model's spacing"
    )
    if min(found) < 1:
        raise DataError(f"{said}; nothing is left to segment: correct the spacing")
    needed = data.shape[0] * _BYTES * int(np.prod(found, dtype=object)) // _MIB
    if needed > host.memory_mib():
        raise DataError(f"{said}, which need {needed:,} MiB of the {host.memory_mib():,} here: correct the spacing")


def _by(sizes: Sequence[int]) -> str:
    """Format sizes, such as 36 x 48 x 40."""
    return " x ".join(f"{int(size)}" for size in sizes)


def _extent_of_nonzero(data: Any, transpose: Any) -> list[int]:
    filled = np.any(data != 0, axis=0)
    extent = []
    for axis in transpose:
        places = np.flatnonzero(filled.any(axis=tuple(other for other in range(filled.ndim) if other != axis)))
        extent.append(int(places[-1] - places[0] + 1) if places.size else filled.shape[axis])
    return extent
