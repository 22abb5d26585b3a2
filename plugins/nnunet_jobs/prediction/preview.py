"""Keeps a coarse copy of an image, to check intensities under a prediction and draw a picture after the image is released."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.report.picture import case_picture

_RAS = np.diag([-1.0, -1.0, 1.0])  # ITK's world is LPS
_LONGEST = 160  # voxels along an axis: at most 16 MiB for a channel, and more than a thumbnail shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Holds every n-th voxel of each channel. ``steps`` is n along each axis, in the reader's order."""

    channels: tuple[npt.NDArray[Any], ...]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, image: npt.NDArray[Any]) -> Preview:
        """Make a preview of an image (channel, z, y, x) as nnU-Net's reader returns it."""
        steps = tuple(math.ceil(size / _LONGEST) for size in image.shape[1:])
        grid = tuple(slice(None, None, step) for step in steps)
        return cls(channels=tuple(np.ascontiguousarray(channel[grid]) for channel in image), steps=steps)

    def at(self, segmentation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the same voxels of a segmentation (z, y, x) of the image's size."""
        return segmentation[tuple(slice(None, None, step) for step in self.steps)]

    def picture(self, segmentation: npt.NDArray[Any], properties: Mapping[str, Any]) -> dict[str, Any] | None:
        """Draw the slice with most foreground, with outlines; see :func:`~nnunet_jobs.report.summary.summarise_case`.

        Structures of fewer voxels than ``steps`` may have no outline.

        Args:
            segmentation: Complete segmentation, in the reader's axis order.
            properties: nnU-Net's properties of the case.
        """
        steps = self.steps[::-1]
        spacing = [float(size) * step for size, step in zip([*properties["spacing"]][::-1], steps, strict=True)]
        axes = _axes(properties)
        affine = None
        if axes is not None:
            affine = np.eye(4)
            affine[:3, :3] = axes * steps
        return case_picture([channel.T for channel in self.channels], self.at(segmentation).T, spacing, affine=affine)


def voxel_affine(properties: Mapping[str, Any]) -> npt.NDArray[np.float64] | None:
    """Return the directions of the voxel axes x, y, z as a 4 x 4 RAS matrix without origin; None if the file has none."""
    axes = _axes(properties)
    if axes is None:
        return None
    affine = np.eye(4)
    affine[:3, :3] = axes
    return affine


def _axes(properties: Mapping[str, Any]) -> npt.NDArray[np.float64] | None:
    """Return the voxel axes x, y, z in RAS, in mm a voxel; None if the file does not say them."""
    itk, nibabel = properties.get("sitk_stuff"), properties.get("nibabel_stuff")
    if itk is not None and len(itk["spacing"]) == 3:
        return np.asarray(_RAS @ (np.reshape(itk["direction"], (3, 3)) * itk["spacing"]), dtype=np.float64)
    if nibabel is not None:
        return np.asarray(nibabel.get("reoriented_affine", nibabel.get("original_affine")), dtype=np.float64)[:3, :3]
    return None
