"""Checks that a series is one regular volume: sorts slices by position, and refuses every irregularity with its reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dicom.model import Grid, Series, files_named
from nnunet_jobs.faults.codes import Code

SPACING_TOLERANCE = 0.02
"""A slice may be off its regular position by this share of the slice distance, or by 0.02 mm, for coordinates rounded to 0.01 mm.

The real series of the tests stay below 0.0002; an error of 2 % is well below the precision of a label's border."""
SHEAR_TOLERANCE = 0.1
"""In-plane drift over the whole stack that is not called tilt: this share of the smaller pixel spacing (or 0.02 mm)."""
_ROUNDING_MM = 0.02
_SAME = 1e-3  # tolerance of direction cosines and relative pixel spacings: above rounding, below a tenth of a pixel over 100

Vector = npt.NDArray[np.float64]


class SeriesRefused(Exception):
    """A series is not one regular volume. ``faults`` say why, without file names or UIDs."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


def grid_of(series: Series) -> Grid:
    """Return the voxel grid of an image series.

    Slices are sorted along their normal by ImagePositionPatient; instance numbers and file names are ignored. The third axis is
    the normal, from the slice with the lowest position to that with the highest, so the grid is right-handed. Tilted (sheared)
    stacks are refused, not resampled: resampling would invent voxels, and predictions could not be written back onto the slices.

    Raises:
        SeriesRefused: The series is not one regular volume; there is a fault for each reason.
    """
    images = [_image(instance) for instance in series.instances]
    faults = [*_matrix_faults(images, [instance.number for instance in series.instances]), *_frame_faults(images)]
    planes = [
        (instance.sop_uid, number, plane)
        for instance, image in zip(series.instances, images, strict=True)
        for number, plane in enumerate(image["planes"], 1)
    ]
    files = [instance.number for instance, image in zip(series.instances, images, strict=True) for _ in image["planes"]]
    faults += [*_missing_faults([plane for _, _, plane in planes], files), *_frame_of_reference_faults(images, series)]
    if faults:
        raise SeriesRefused(faults)
    row, column, normal = _axes([plane["orientation"] for _, _, plane in planes], files)
    spacing = np.array([plane["spacing"] for _, _, plane in planes])
    if not (spacing > 0).all() or np.ptp(spacing, axis=0).max() > _SAME * spacing.min():
        usual = np.median(spacing, axis=0)
        odd = ((spacing <= 0) | (np.abs(spacing - usual) > _SAME * np.abs(usual) / 2)).any(axis=1)
        message = f"pixel spacings differ between slices or are not more than 0{_odd(odd, files)}; {_SPLIT}"
        raise SeriesRefused([_fault(Code.DICOM_MATRIX_VARIES, message)])
    positions = np.array([plane["position"] for _, _, plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    step = _step((positions @ normal)[order], positions[order], normal, spacing[0], max(image["tilt"] for image in images))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing[0][1], column * spacing[0][0]  # PixelSpacing is (between rows, between columns)
    affine[:3, 2], affine[:3, 3] = normal * step, positions[order[0]]
    multi = images[0]["frames"] > 1
    return Grid(
        shape=(images[0]["columns"], images[0]["rows"], len(planes)),
        affine=affine,
        sop_uids=(planes[0][0],) if multi else tuple(planes[index][0] for index in order),
        frames=tuple(planes[index][1] for index in order) if multi else (),
    )


SAME_PLACE = 0.1
"""Distance in voxels up to which the corners of two grids count as equal."""


def same_place(first: Grid, other: Grid) -> bool:
    """Whether two grids have the same voxels in the same order."""
    if first.shape != other.shape:
        return False
    corners = np.asarray([(*np.multiply(corner, np.subtract(first.shape, 1)), 1) for corner in np.ndindex(2, 2, 2)], dtype=np.float64)
    seen = corners @ other.affine.T @ np.linalg.inv(first.affine).T  # the corners of the other in voxels of the first
    return bool(np.abs(seen - corners).max() <= SAME_PLACE)


_SPLIT = "the series mixes images of several kinds, export them as series of their own"


def place(image: Mapping[str, Any] | None) -> float:
    """Return the position of an image's first plane along its normal in mm, to sort by; 0 for anything without geometry."""
    plane = image["planes"][0] if image and image["planes"] else None
    if plane is None or plane["position"] is None or plane["orientation"] is None:
        return 0.0
    orientation = np.array(plane["orientation"])
    return float(np.cross(orientation[:3], orientation[3:]) @ np.array(plane["position"]))


def _image(instance: Any) -> dict[str, Any]:
    image: dict[str, Any] | None = instance.image
    if not image:
        from nnunet_jobs.dicom.header import read_header

        image = read_header(str(instance.path)).get("image")
    if not image:
        raise SeriesRefused([_fault(Code.DICOM_GEOMETRY_MISSING, "it holds objects that are not images")])
    return image


def _fault(code: Code, message: str) -> Fault:
    return Fault(code=code, message=message)


def _odd(odd: Iterable[Any], files: Sequence[int]) -> str:
    """Name the files that differ, for a message; empty if all of them do, or their numbers are not known."""
    numbers = [number for number, is_odd in zip(files, odd, strict=True) if is_odd]
    named = files_named(numbers)
    return f" (those of {named} are odd)" if named and len(numbers) < len(files) else ""


def _missing_faults(planes: Sequence[Mapping[str, Any]], files: Sequence[int]) -> list[Fault]:
    """Return one fault for each set of tags that slices lack, with the files that lack it."""
    groups: dict[str, list[int]] = {}
    for plane, number in zip(planes, files, strict=True):
        if lacking := [word for name, word in _GEOMETRY.items() if plane[name] is None]:
            groups.setdefault(" and ".join(lacking), []).append(number)
    faults = []
    for what, numbers in groups.items():
        named = files_named(numbers) if len(numbers) < len(files) else ""
        message = f"{what} missing or garbled in {len(numbers)} of {len(files)} slices{f' ({named})' if named else ''}"
        faults.append(_fault(Code.DICOM_GEOMETRY_MISSING, f"{message}; export the original images"))
    return faults


def _frame_of_reference_faults(images: Sequence[Mapping[str, Any]], series: Series) -> list[Fault]:
    """Refuse several frames of reference, whose positions cannot be compared. Images without one are checked where it is needed."""
    said = [image["frame_of_reference"] for image in images]
    counts = Counter(uid for uid in said if uid)
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    odd = _odd([uid not in ("", usual) for uid in said], [instance.number for instance in series.instances])
    return [_fault(Code.DICOM_GEOMETRY_MISSING, f"slices lie in {len(counts)} frames of reference{odd}; {_SPLIT}")]


_GEOMETRY = {"position": "ImagePositionPatient", "orientation": "ImageOrientationPatient", "spacing": "PixelSpacing"}


def _matrix_faults(images: Sequence[Mapping[str, Any]], files: Sequence[int]) -> list[Fault]:
    faults = []
    coloured = [
        image["samples"] != 1 or not image["photometric"].startswith("MONOCHROME" if image["photometric"] else "") for image in images
    ]
    if any(coloured):
        message = f"holds colour images{_odd(coloured, files)}; only grey values are read, export the original images"
        faults.append(_fault(Code.DICOM_COLOUR, message))
    shapes = Counter((image["columns"], image["rows"]) for image in images)
    if len(shapes) > 1:
        sizes = ", ".join(f"{count} of {columns} x {rows}" for (columns, rows), count in shapes.most_common(5))
        usual = shapes.most_common(1)[0][0]
        odd = _odd([(image["columns"], image["rows"]) != usual for image in images], files)
        faults.append(_fault(Code.DICOM_MATRIX_VARIES, f"slices have different sizes ({sizes}){odd}; {_SPLIT}"))
    return faults


def _frame_faults(images: Sequence[Mapping[str, Any]]) -> list[Fault]:
    frames = [image["frames"] for image in images]
    if any(count != len(image["planes"]) for count, image in zip(frames, images, strict=True)):
        return [
            _fault(Code.DICOM_GEOMETRY_MISSING, "a multi-frame object describes another number of frames than it holds; export it again")
        ]
    if max(frames) > 1 and len(images) > 1:
        return [_fault(Code.DICOM_SEVERAL_VOLUMES, f"holds {len(images)} objects with up to {max(frames)} frames each; {_SPLIT}")]
    if sum(frames) == 1:
        return [_fault(Code.DICOM_SINGLE_SLICE, "holds a single slice, which has no distance to a next one; choose a series with a volume")]
    return []


def _axes(orientations: Sequence[Sequence[float]], files: Sequence[int]) -> tuple[Vector, Vector, Vector]:
    """Return unit vectors along a row (i), along a column (j) and the normal (k), common to all slices."""
    all_of_them = np.array(orientations)
    row, column = all_of_them[:, :3], all_of_them[:, 3:]
    lengths = np.linalg.norm(all_of_them.reshape(-1, 2, 3), axis=2)
    askew = (np.abs(lengths - 1).max(axis=1) > _SAME) | (np.abs((row * column).sum(axis=1)) > _SAME)
    if askew.any():
        message = f"ImageOrientationPatient is not two perpendicular unit vectors{_odd(askew, files)}; export the original images"
        raise SeriesRefused([_fault(Code.DICOM_GEOMETRY_MISSING, message)])
    stacks: list[tuple[Vector, list[int]]] = []
    for place, orientation in enumerate(all_of_them):
        for first, places in stacks:
            if np.abs(first - orientation).max() <= _SAME:
                places.append(place)
                break
        else:
            stacks.append((orientation, [place]))
    if len(stacks) > 1:
        sizes = ", ".join(str(len(places)) for _, places in stacks[:10])
        usual = max((places for _, places in stacks), key=len)
        odd = _odd([place not in usual for place in range(len(files))], files)
        message = f"slices lie in {len(stacks)} orientations ({sizes} slices), as localizers do{odd}; {_SPLIT}"
        raise SeriesRefused([_fault(Code.DICOM_ORIENTATION_MIXED, message)])
    along = row[0] / np.linalg.norm(row[0])
    normal = np.cross(along, column[0])
    normal /= np.linalg.norm(normal)
    return along, np.cross(normal, along), normal


def _step(heights: Vector, positions: Vector, normal: Vector, spacing: Vector, tilt: float) -> float:
    """Return the distance of the slices in mm, for sorted ``heights`` along the normal (mm) and their positions."""
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    tolerance = max(SPACING_TOLERANCE * usual, _ROUNDING_MM)
    twice = int((gaps < tolerance / 2).sum())
    if usual < tolerance / 2 or twice:
        places = len(heights) - twice
        several = "several volumes (time points, echoes, contrasts) or repeated slices"
        message = f"{len(heights)} slices lie at {places} positions: {several}; {_SPLIT}"
        code = Code.DICOM_SEVERAL_VOLUMES if places and len(heights) % places == 0 else Code.DICOM_SLICE_DUPLICATE
        raise SeriesRefused([_fault(code, message)])
    drift = positions - positions[0] - np.outer(heights - heights[0], normal)
    sideways = float(np.linalg.norm(drift, axis=1).max())
    faults = []
    if sideways > max(SHEAR_TOLERANCE * float(spacing.min()), _ROUNDING_MM):
        angle = math.degrees(math.atan2(sideways, float(heights[-1] - heights[0])))
        message = (
            f"the stack leans by {angle:.2f} degrees against its slices (gantry tilt {tilt:g}); "
            "reconstruct it upright at the scanner: resampling here would invent voxels"
        )
        faults.append(_fault(Code.DICOM_TILT, message))
    steps = np.rint(gaps / usual)
    whole = np.abs(gaps - steps * usual) <= np.maximum(tolerance, SPACING_TOLERANCE * gaps)
    if (steps[whole] > 1).any() and whole.all():
        holes = [f"{int(steps[index]) - 1} after slice {index + 1}" for index in np.flatnonzero(steps > 1)]
        message = f"slices are missing ({', '.join(holes[:10])} of {len(heights)}, {usual:.3f} mm apart); export the whole series"
        faults.append(_fault(Code.DICOM_SLICE_MISSING, message))
    else:
        step = float(heights[-1] - heights[0]) / len(gaps)
        off = np.abs(heights - heights[0] - step * np.arange(len(heights))).max()
        if off > max(SPACING_TOLERANCE * step, _ROUNDING_MM):
            message = (
                f"slice distances run from {gaps.min():.3f} to {gaps.max():.3f} mm, so slices lie up to {off:.3f} mm off a regular grid; "
                "export a series with equal distances"
            )
            faults.append(_fault(Code.DICOM_SPACING_VARIES, message))
    if faults:
        raise SeriesRefused(faults)
    return float(heights[-1] - heights[0]) / len(gaps)
