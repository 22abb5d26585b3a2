"""Distances from surface elements to the nearest element of another surface, exact, computed at surface elements alone.

Two segmentations that resemble each other have surfaces that are seldom further apart than two voxels. So the cells around an element
are looked up first, nearest first, which ends at the first hit. The elements without a neighbour there ask a search tree if they are
few. If they are many, or far away, the squared distances of the box around them are built up axis by axis, which does not become slower
with every element (the separable distance transform, but its last axis at the elements alone).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunet_jobs.metrics.surface_elements import Lattice

_BLOCK = 8
_LARGEST_BOX = 2**24  # cells of eight bytes


class Nearest:
    """Distances between sets of cells of one lattice. Holds one byte a cell; for one thread."""

    def __init__(self, lattice: Lattice) -> None:
        self._lattice = lattice
        self._shells = _shells(lattice)
        self._front = max(abs(step) for _, step in self._shells)
        self._occupied = np.zeros(math.prod(lattice.shape) + 2 * self._front, bool)

    def __call__(self, cells: Any, targets: Any) -> Any:
        """Distance in mm from each cell to the nearest target; there must be a target."""
        result = np.empty(len(cells))
        occupied, shifted = self._occupied, cells + self._front
        occupied[targets + self._front] = True
        rest = np.arange(len(cells))
        for distance, step in self._shells:
            hit = occupied[shifted + step]
            if hit.any():
                result[rest[hit]] = distance
                rest, shifted = rest[~hit], shifted[~hit]
                if not len(rest):
                    break
        occupied[targets + self._front] = False
        if len(rest):
            result[rest] = self._of_far_cells(np.stack(np.unravel_index(cells[rest], self._lattice.shape)), targets)
        return result

    def _of_far_cells(self, cells: Any, targets: Any) -> Any:
        from scipy.spatial import cKDTree

        lattice, spacing = self._lattice, np.array(self._lattice.spacing)
        tree = cKDTree(lattice.place(targets))
        blocks = np.unique(cells // _BLOCK, axis=1)
        centres = (blocks.T * _BLOCK + (_BLOCK - 1) / 2) * spacing
        reach = float(tree.query(centres)[0].max() + np.linalg.norm(spacing * (_BLOCK - 1) / 2))  # no cell is further from its target
        places = np.stack(np.unravel_index(targets, lattice.shape))
        box = _box(cells, places, np.ceil(reach / spacing).astype(int))
        steps = [math.floor(reach / size) for size in lattice.spacing]
        asking = cells.shape[1] * (1 + 0.5 * reach / spacing.min()) * 1e-6
        sweeping = math.prod(last - first for first, last in box) * (10 + 2.4 * steps[-2]) * 1e-9 + cells.shape[1] * steps[0] * 1e-8
        if cells.shape[0] == 3 and sweeping < asking and math.prod(last - first for first, last in box) <= _LARGEST_BOX:
            return np.sqrt(_swept(cells, places, box, steps, lattice.spacing))
        return tree.query(cells.T * spacing)[0]


def _box(cells: Any, targets: Any, reach: Any) -> list[tuple[int, int]]:
    """First and one after the last index of the part of the lattice, by axis, that holds the cells and every target they can have."""
    first, last = cells.min(axis=1), cells.max(axis=1)
    low = np.minimum(first, np.maximum(first - reach, targets.min(axis=1)))
    high = np.maximum(last, np.minimum(last + reach, targets.max(axis=1)))
    return [(int(start), int(stop) + 1) for start, stop in zip(low, high, strict=True)]


def _swept(cells: Any, targets: Any, box: Sequence[tuple[int, int]], steps: Sequence[int], spacing: Sequence[float]) -> Any:
    """Squared distances in mm² from cells to the nearest target, none of which is further away than ``steps`` along an axis."""
    origin = np.array([[first] for first, _ in box])
    shape = [last - first for first, last in box]
    inside = ((targets >= origin) & (targets < origin + np.array(shape)[:, None])).all(axis=0)
    cells = cells - origin
    occupied = np.zeros(shape, bool)
    occupied[tuple(targets[:, inside] - origin)] = True
    margin = steps[0]  # planes that no target is in, so that no cell asks outside the array
    squares = np.full((shape[0] + 2 * margin, *shape[1:]), np.inf)
    index = np.arange(shape[2], dtype=float)
    for number in np.flatnonzero(occupied.any(axis=(1, 2))):
        plane = occupied[number]
        before = np.maximum.accumulate(np.where(plane, index, -np.inf), axis=1)
        behind = np.minimum.accumulate(np.where(plane, index, np.inf)[:, ::-1], axis=1)[:, ::-1]
        along = (np.minimum(index - before, behind - index) * spacing[2]) ** 2
        result, scratch = squares[number + margin], np.empty_like(along)
        for step in range(-min(steps[1], shape[1] - 1), min(steps[1], shape[1] - 1) + 1):
            source, place = slice(max(0, step), shape[1] + min(0, step)), slice(max(0, -step), shape[1] + min(0, -step))
            np.add(along[source], (step * spacing[1]) ** 2, out=scratch[place])
            np.minimum(result[place], scratch[place], out=result[place])
    flat, size = squares.ravel(), shape[1] * shape[2]
    places = np.ravel_multi_index((cells[0] + margin, cells[1], cells[2]), squares.shape)
    nearest = flat[places]
    for step in range(1, margin + 1):
        for shifted in (places - step * size, places + step * size):
            np.minimum(nearest, flat[shifted] + (step * spacing[0]) ** 2, out=nearest)
    return nearest


def _shells(lattice: Lattice) -> list[tuple[float, int]]:
    """(distance in mm, step of the flat index) of every cell nearer than ``margin + 1`` times the smallest spacing, nearest first.

    No cell that is as near lies more than ``margin`` cells away on any axis, so that none is missed and no step leaves its row.
    """
    reach = (lattice.margin + 1) * min(lattice.spacing) * (1 - 1e-9)
    found = []
    for step in itertools.product(range(-lattice.margin, lattice.margin + 1), repeat=len(lattice.shape)):
        distance = math.hypot(*(index * size for index, size in zip(step, lattice.spacing, strict=True)))
        if distance < reach:
            found.append((distance, sum(index * stride for index, stride in zip(step, lattice.strides, strict=True))))
    return sorted(found)
