"""The surface of a label between voxels, as elements with an area, found for all labels in one pass over the volume.

Eight neighbouring voxels (four pixels in 2-D) form a cell, whose centre is the corner that they share. A cell that lies partly in a
label holds a piece of the label's surface: a surface element at the cell's centre. Its area is that of the surface that marching cubes
draws through the cell. These are the elements of Nikolov et al. (arXiv 1809.04430) and of DeepMind's ``surface-distance`` 0.1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_SLAB_BYTES = 2**20  # a slab and its two temporaries fit into a core's cache
_TRIANGLES: dict[int, tuple[tuple[float, float, float], ...]] = {
    0b00000001: ((1, 1, 1),),
    0b00000011: ((2, 2, 0), (2, 2, 0)),
    0b00000110: ((1, 1, 1), (1, 1, 1)),
    0b00000111: ((1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00001111: ((4, 0, 0), (4, 0, 0)),
    0b00010110: ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    0b00010111: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    0b00011000: ((1, 1, 1), (1, 1, 1)),
    0b00011001: ((0, 2, 2), (0, 2, 2), (1, 1, 1)),
    0b00011011: ((0, 2, 2), (1, 1, 1), (2, 0, 2), (3, 3, 3)),
    0b00011110: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00111100: ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0)),
    0b00111101: ((1, 1, 1), (2, 2, 0), (2, 2, 0)),
    0b01101001: ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
}
"""Marching cubes by class of cell: the triangles' normals without sign, in eighths, their length being the triangle's area.

Every other cell is one of these turned, mirrored or complemented. From ``surface-distance`` 0.1, Copyright 2018 Google Inc., Apache
License 2.0. A test compares all 256 areas with those of that package.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """A volume with a border of background, seen flat; a cell is named by the flat index of its first voxel.

    Attributes:
        shape: Shape of the bordered volume: one layer before the voxels, ``margin`` layers behind them.
        spacing: Distance between voxels in mm, by axis.
        margin: How many cells may be walked along an axis before the flat index reaches a cell of another row.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    margin: int

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps of the flat index by axis."""
        return tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))

    @property
    def corners(self) -> list[int]:
        """Flat distance of a cell's voxels from its first one; the last axis runs fastest."""
        return [sum(itertools.compress(self.strides, corner)) for corner in itertools.product((0, 1), repeat=len(self.shape))]

    def place(self, cells: Any) -> Any:
        """Places of cells in mm, as rows."""
        return np.stack([index * step for index, step in zip(np.unravel_index(cells, self.shape), self.spacing, strict=True)], axis=1)


def bordered(volume: Any, margin: int, kind: Any) -> Any:
    """A copy of the volume, of numbers of a kind, with a layer of background before it on every axis and ``margin`` layers behind it."""
    result = np.zeros([length + 1 + margin for length in volume.shape], kind)
    result[tuple(slice(1, 1 + length) for length in volume.shape)] = volume
    return result


def mixed_cells(volume: Any, other: Any) -> tuple[Any, Any]:
    """Flat indices of the cells whose voxels are not all equal, in two bordered volumes of one shape."""
    planes, plane = volume.shape[0], max(1, math.prod(volume.shape[1:]))
    thickness = max(1, _SLAB_BYTES // (plane * volume.itemsize))
    found: tuple[list[Any], list[Any]] = ([], [])
    for start in range(0, planes - 1, thickness):
        stop = min(start + thickness, planes - 1)
        window = _foreground(volume[start : stop + 1], other[start : stop + 1])
        if window is None:
            continue
        for source, cells in zip((volume, other), found, strict=True):
            places = np.nonzero(_mixed(source[start : stop + 1][(slice(None), *window)]))
            places = (places[0] + start, *(place + part.start for place, part in zip(places[1:], window, strict=True)))
            cells.append(np.ravel_multi_index(places, volume.shape))
    first, second = (np.concatenate(cells) if cells else np.zeros(0, np.intp) for cells in found)
    return first, second


def areas(spacing: Sequence[float]) -> Any:
    """Area of the surface in a cell in mm² (3-D), or length of the contour in mm (2-D), by the code of the cell.

    Bit ``k`` of the code says whether voxel ``k`` of the cell is inside; voxels are numbered as in ``Lattice.corners``.
    """
    return _lengths(spacing) if len(spacing) == 2 else _areas(spacing)


def _foreground(*slabs: Any) -> tuple[slice, ...] | None:
    """The part of a slab that its foreground touches, with one voxel around it where there is one; None without foreground."""
    plane = np.bitwise_or.reduce(slabs[0], axis=0) | np.bitwise_or.reduce(slabs[1], axis=0)
    window = []
    for axis in range(plane.ndim):
        used = np.flatnonzero(plane.any(axis=tuple(other for other in range(plane.ndim) if other != axis)))
        if not len(used):
            return None
        window.append(slice(max(0, int(used[0]) - 1), int(used[-1]) + 2))
    return tuple(window)


def _mixed(slab: Any) -> Any:
    """Whether the smallest and the largest voxel of a cell differ."""
    low = high = slab
    for axis in range(slab.ndim):
        before = tuple(slice(None, -1) if other == axis else slice(None) for other in range(slab.ndim))
        after = tuple(slice(1, None) if other == axis else slice(None) for other in range(slab.ndim))
        low, high = np.minimum(low[before], low[after]), np.maximum(high[before], high[after])
    return low != high


def _areas(spacing: Sequence[float]) -> Any:
    first, second, third = spacing
    faces = np.array([second * third, first * third, first * second]) / 8
    result = np.zeros(256)
    for pattern, triangles in _TRIANGLES.items():
        cell = np.array([pattern >> voxel & 1 for voxel in range(8)]).reshape(2, 2, 2)
        for order in itertools.permutations(range(3)):
            area = float(np.linalg.norm(np.array(triangles)[:, order] * faces, axis=1).sum())
            for flips in itertools.product((1, -1), repeat=3):
                turned = cell.transpose(order)[:: flips[0], :: flips[1], :: flips[2]].ravel()
                code = int((turned << np.arange(8)).sum())
                result[code] = result[255 - code] = area
    return result


def _lengths(spacing: Sequence[float]) -> Any:
    first, second = spacing
    diagonal = 0.5 * math.hypot(first, second)
    result = np.zeros(16)
    for code in (0b0001, 0b0010, 0b0100, 0b1000):  # one pixel, or all but one
        result[code] = result[15 - code] = diagonal
    result[0b0011] = result[0b1100] = second
    result[0b0101] = result[0b1010] = first
    result[0b0110] = result[0b1001] = 2 * diagonal
    return result
