"""Distances from surface elements to the nearest element of another surface, exact, computed at surface elements alone.

Two segmentations that resemble each other have surfaces that are seldom further apart than two voxels. So the cells around an element
are looked up first, nearest first, which ends at the first hit. Only elements without a neighbour there need a search tree.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from nnunet_jobs.metrics.surface_elements import Lattice


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
            from scipy.spatial import cKDTree

            tree = cKDTree(self._lattice.place(targets))
            result[rest] = tree.query(self._lattice.place(cells[rest]))[0]
        return result


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
