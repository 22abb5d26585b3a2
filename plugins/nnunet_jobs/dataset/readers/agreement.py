"""Checks that the files of one case share a grid, with the tolerances of nnU-Net's readers, for registration and prediction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dataset.readers.volume import Volume, shown_mm
from nnunet_jobs.faults.codes import Code

READER_TOLERANCE = 1e-5
"""Relative tolerance within which nnU-Net's readers accept the spacings of a case's channels (NumPy's ``allclose``)."""
DEFAULT_TOLERANCE = 1e-3
"""Relative tolerance of positions and of the label's spacing: registration's default for ``spacing_tolerance``."""
EXTENT = 100
"""Voxels over which a relative error of the tolerance adds up: files may lie a tenth of a voxel apart by default."""

Agrees = Callable[["Member", "Member"], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file of a case.

    Attributes:
        name: Name of the file, for the faults.
        volume: The volume as it was read.
        label: Whether it is the label image; the others are channels.
    """

    name: str
    volume: Volume
    label: bool = False


def disagreements(members: Sequence[Member], *, case: str, tolerance: float = DEFAULT_TOLERANCE) -> list[Fault]:
    """Return faults of files on another grid than the case's others. Each such file is named once, with its first difference.

    The files that most others agree with define the grid; of two files that differ, the first channel does. Shapes must be equal.
    Spacings of channels must agree as nnU-Net's reader requires, that of the label within ``tolerance``. Positions agree when
    every corner of the volume differs by at most ``100 * tolerance`` of the smallest spacing, a tenth of a voxel by default.

    Args:
        members: The case's files in the order of the channels, the label last. Those that could not be read are left
            out here.
        case: Id, for the faults.
        tolerance: Relative tolerance.
    """
    usable = [member for member in members if member.volume.usable]
    faults: list[Fault] = []
    strict = min(tolerance, READER_TOLERANCE)

    def check(code: Code, agrees: Agrees, alike: Agrees, message: Callable[[Member, Member], str]) -> None:
        """Remove files that differ. ``alike`` says which files vote for the same grid, ``agrees`` which are close enough."""
        nonlocal usable
        if len(usable) < 2:
            return
        candidates = [member for member in usable if not member.label] or usable
        if all(agrees(candidates[0], member) for member in usable if member is not candidates[0]):
            return  # all agree, so no vote is needed
        grid = max(candidates, key=lambda one: sum(alike(one, other) for other in usable))  # the first of several
        odd = [member for member in usable if member is not grid and not agrees(grid, member)]
        faults.extend(Fault(code=code, case=case, file=member.name, message=message(grid, member)) for member in odd)
        usable = [member for member in usable if member not in odd]

    check(
        Code.SHAPE_MISMATCH,
        _same_shape,
        _same_shape,
        lambda grid, odd: f"has the shape {odd.volume.shape[:3]} where {grid.name} has {grid.volume.shape[:3]}",
    )
    check(
        Code.SPACING_MISMATCH,
        lambda grid, odd: _same_spacing(grid, odd, tolerance if odd.label else strict),
        lambda one, other: _same_spacing(one, other, strict),
        lambda grid, odd: _spacing_message(grid, odd, tolerance if odd.label else strict),
    )
    check(
        Code.AFFINE_MISMATCH,
        lambda grid, odd: _same_place(grid, odd, tolerance),
        lambda one, other: _same_place(one, other, tolerance),
        _place_message,
    )
    return faults


def _same_shape(one: Member, other: Member) -> bool:
    shape, other_shape = one.volume.shape[:3], other.volume.shape[:3]
    return shape == other_shape or not shape or not other_shape


def _same_spacing(one: Member, other: Member, tolerance: float) -> bool:
    spacing, other_spacing = np.array(one.volume.spacing), np.array(other.volume.spacing)
    return bool((np.abs(spacing - other_spacing) <= tolerance * np.maximum(spacing, other_spacing)).all())


def _same_place(one: Member, other: Member, tolerance: float) -> bool:
    return corner_distance(one.volume, other.volume) <= EXTENT * tolerance * min(one.volume.spacing)


def _spacing_message(grid: Member, odd: Member, tolerance: float) -> str:
    digits = 9 if tolerance <= READER_TOLERANCE else 6
    message = f"has the spacing {shown_mm(odd.volume.spacing, digits)} where {grid.name} has {shown_mm(grid.volume.spacing, digits)}"
    if odd.label or not _same_spacing(grid, odd, DEFAULT_TOLERANCE):
        return message
    return f"{message}; nnU-Net's reader refuses channels that differ by more than 1 in 100,000, write the same spacing into both"


def _place_message(grid: Member, odd: Member) -> str:
    moved = corner_distance(grid.volume, odd.volume)
    orders = [voxel_order(member.volume.affine) for member in (odd, grid)]
    turned = f"; its voxel order is {orders[0]}, not {orders[1]}" if orders[0] != orders[1] else ""
    return f"lies up to {moved:.3g} mm away from {grid.name} (origin or direction differ{turned})"


def corner_distance(volume: Volume, other: Volume) -> float:
    """Return the largest distance in mm between the same corner of two volumes."""
    shape = (volume.shape or other.shape)[:3]
    return affine_distance(_affine(volume), _affine(other), shape)


def affine_distance(affine: npt.NDArray[np.float64], other: npt.NDArray[np.float64], shape: Sequence[int]) -> float:
    """Return the largest distance between the positions of one corner by two affines (4 x 4), in their unit."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in shape))], dtype=float)
    return float(np.linalg.norm((corners @ (affine - other).T)[:, :3], axis=1).max())


def voxel_order(affine: npt.NDArray[np.float64] | None) -> str:
    """Return the directions of the voxel axes of an affine (voxel to RAS, 4 x 4), such as ``RAS``; empty if it is None."""
    if affine is None:
        return ""
    import nibabel

    return "".join(axis or "?" for axis in nibabel.aff2axcodes(affine))


def _affine(volume: Volume) -> npt.NDArray[np.float64]:
    if volume.affine is None:
        raise ValueError("the volume has no affine")
    return volume.affine
