"""A coarse copy of an image: enough to judge intensities under a prediction and to draw a picture, while the image itself is let go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_LONGEST = 160  # voxels along an axis: 16 MiB for a channel at most, and more than a thumbnail shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Every n-th voxel of each channel. ``steps``: n along each axis, in the reader's order."""

    channels: tuple[npt.NDArray[Any], ...]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, image: npt.NDArray[Any]) -> Preview:
        """Of an image (channel, z, y, x) as nnU-Net's reader returns it."""
        steps = tuple(math.ceil(size / _LONGEST) for size in image.shape[1:])
        grid = tuple(slice(None, None, step) for step in steps)
        return cls(channels=tuple(np.ascontiguousarray(channel[grid]) for channel in image), steps=steps)

    def at(self, segmentation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same voxels of a segmentation (z, y, x) of the image's size."""
        return segmentation[tuple(slice(None, None, step) for step in self.steps)]
