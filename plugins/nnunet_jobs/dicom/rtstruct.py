"""Reads RTSTRUCT ROI by ROI onto the grid of its reference series: planar contours become voxels whose centres they enclose.

It uses pydicom and scikit-image, because rt-utils is not maintained and would add OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.dicom.model import Grid, Series
from nnunet_jobs.dicom.reading import read_file
from nnunet_jobs.dicom.references import items, references_of
from nnunet_jobs.dicom.segments import LabelFaults, Mask, Segment, quiet_libraries, referenced, shown_name
from nnunet_jobs.faults.codes import Code

# Largest distance of a contour's points from the centre of a slice, in slices.
_TOLERANCE = 0.1
# Points are rounded to a sixteenth of a voxel. A file gives them in decimals of a mm, so a point that was drawn on a voxel's centre
# would otherwise fall on either side of it; the rounding moves an edge by at most a thirty-second of a voxel.
_STEPS = 16
_CLOSED, _XOR = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"


def read_rtstruct(path: Path, *, reference: Series, grid: Grid, source: str, threshold: float, report: LabelFaults) -> list[Segment]:
    """Return the ROIs of one RTSTRUCT. Faults of the object are reported here, faults of a contour when its ROI is painted.

    Args:
        reference: The series that the object must describe.
        grid: Voxel grid of that series.
        source: Name of the object in faults.
        threshold: Not used for RTSTRUCT.
    """
    quiet_libraries()
    dataset = read_file(path)
    names, contours = _structures(dataset, source, report), _contours(dataset)
    images = {instance.sop_uid for instance in reference.instances}
    if not references_of(dataset).point_to(series=reference.series_uid, images=images, frame=reference.frame_of_reference_uid):
        report.error(Code.LABEL_REFERENCE, f"{source}: describes another series; contour on this one, or choose the one it describes")
        return []
    inverse = np.asarray(np.linalg.inv(grid.affine), dtype=np.float64)
    found = []
    for number, item in names.items():
        name = str(item.get("ROIName") or f"ROI {number}")
        roi = _Roi(f"{source}, ROI {number}", str(item.get("ReferencedFrameOfReferenceUID") or ""), contours.get(number, ()), reference)
        found.append(Segment(name=name, shown=shown_name(name, dataset), source=source, paint=roi.painter(grid, inverse)))
    if unnamed := sorted(number for number, own in contours.items() if own and number not in names):
        numbers = ", ".join(map(str, unnamed[:5])) + (f" and {len(unnamed) - 5} more" if len(unnamed) > 5 else "")
        message = f"{source}: has contours of ROI {numbers}, which it does not name, so their structure is not known; export it again"
        report.error(Code.LABEL_OBJECT, message)
    return found


def _structures(dataset: Any, source: str, report: LabelFaults) -> dict[int, Any]:
    """Return the ROIs by number. A number of two names is reported, since its contours could belong to either."""
    found: dict[int, Any] = {}
    for item in items(dataset, "StructureSetROISequence"):
        first = found.setdefault(int(item.ROINumber), item)
        if str(first.get("ROIName")) != str(item.get("ROIName")):
            message = f"{source}: gives the number {int(item.ROINumber)} to two ROIs of different names; export it again"
            report.error(Code.LABEL_OBJECT, message)
    return found


def _contours(dataset: Any) -> dict[int, list[Any]]:
    """Return all contours of each ROI, also if a file divides them among several items."""
    found: dict[int, list[Any]] = {}
    for item in items(dataset, "ROIContourSequence"):
        found.setdefault(int(item.ReferencedROINumber), []).extend(items(item, "ContourSequence"))
    return found


class _Roi:
    """One ROI: its contours, and why some of them cannot be used."""

    def __init__(self, where: str, frame_of_reference: str, contours: Sequence[Any], reference: Series) -> None:
        self._where, self._frame_of_reference, self._contours, self._reference = where, frame_of_reference, contours, reference

    def painter(self, grid: Grid, inverse: npt.NDArray[np.float64]) -> Callable[[Mask, LabelFaults], None]:
        """Return the function that sets the ROI's voxels in a mask."""

        def paint(mask: Mask, report: LabelFaults) -> None:
            ours = self._reference.frame_of_reference_uid
            if ours and self._frame_of_reference and ours != self._frame_of_reference:
                message = f"{self._where}: is in another frame of reference than its series; register and resample it first"
                report.error(Code.LABEL_REFERENCE, message)
                return
            by_slice = self._by_slice(grid, inverse, report)
            for place, polygons in by_slice.items():
                _fill(mask[:, :, place], polygons, lambda message: report.warning(Code.CONTOUR_OVERLAP, f"{self._where}{message}"), place)
            gaps = sorted(set(range(min(by_slice), max(by_slice))) - set(by_slice)) if by_slice else []
            if gaps:
                message = f"{self._where}: has no contour on {len(gaps)} slices between its first and last; nothing is filled in there"
                report.warning(Code.CONTOUR_GAP, message)

        return paint

    def _by_slice(self, grid: Grid, inverse: Any, report: LabelFaults) -> dict[int, list[tuple[str, Any]]]:
        """Return the polygons of each slice as (kind, points in voxel indices i, j); none if one contour cannot be placed."""
        by_slice: dict[int, list[tuple[str, Any]]] = {}
        left_out: dict[str, int] = {}
        problems: dict[tuple[Code, str], list[int]] = {}
        place_of = {uid: place for place, uid in enumerate(grid.sop_uids)} if not grid.frames else {}
        for number, contour in enumerate(self._contours, start=1):
            kind = str(contour.get("ContourGeometricType") or "")
            points = _points(contour)
            if kind == "POINT" or (kind in (_CLOSED, _XOR) and points.size < 9):
                left_out[kind] = left_out.get(kind, 0) + 1
                continue
            problem: tuple[Code, str] | None = None
            indices = np.zeros((0, 3))
            if kind not in (_CLOSED, _XOR):
                problem = Code.CONTOUR_TYPE, "are open or of an unknown type and enclose nothing; close them, or skip the ROI"
            elif points.size % 3 or not np.isfinite(points).all():
                problem = Code.UNREADABLE, "have coordinates that are not finite triples; export it again"
            else:
                indices = points.reshape(-1, 3) @ inverse[:3, :3].T + inverse[:3, 3]
                problem = self._misplaced(indices, contour, grid, place_of)
            if problem:
                problems.setdefault(problem, []).append(number)
            else:
                place = int(np.rint(indices[:, 2].mean()))
                by_slice.setdefault(place, []).append((kind, np.round(indices[:, :2] * _STEPS) / _STEPS))
        for kind, count in left_out.items():
            what = "POINT" if kind == "POINT" else "degenerate (fewer than three points)"
            report.warning(Code.CONTOUR_TYPE, f"{self._where}: {count} {what} contours enclose nothing and are left out")
        for (code, message), numbers in problems.items():
            shown = ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
            report.error(code, f"{self._where}: contours {shown} {message}")
        return {} if problems else by_slice

    def _misplaced(self, indices: Any, contour: Any, grid: Grid, place_of: dict[str, int]) -> tuple[Code, str] | None:
        along = indices[:, 2]
        if float(along.max() - along.min()) > _TOLERANCE:
            return Code.CONTOUR_PLANE, "are oblique to the slices; contour on the series' own slices"
        place = int(np.rint(along.mean()))
        if float(np.abs(along - place).max()) > _TOLERANCE:
            return Code.CONTOUR_PLANE, "lie between two slices; contour on the series' own slices"
        if not 0 <= place < grid.shape[2]:
            return Code.LABEL_GRID, "lie outside the series; export the whole series"
        uids = referenced(contour, "ContourImageSequence", "ReferencedSOPInstanceUID")
        if uids and place_of:
            slices = {place_of[uid] for uid in uids if uid in place_of}
            if not slices:
                return Code.LABEL_REFERENCE, "refer to images that are not of this series; export it again from the series it describes"
            if place not in slices:
                return Code.LABEL_REFERENCE, "lie at other slices than those they refer to; one of the two is wrong"
        return None


def _points(contour: Any) -> npt.NDArray[np.float64]:
    """Return a contour's coordinates, NaN where they are not numbers.

    They are parsed from the file's raw string: a big structure set has millions, and pydicom would make an object of each. That
    string does not depend on the VR; values of 64 KiB and more cannot be of VR DS.
    """
    element = contour.get_item("ContourData") if "ContourData" in contour else None
    value = element.value if element is not None else None
    if isinstance(value, str):
        value = value.encode()
    try:
        if isinstance(value, bytes):
            text = value.strip(b" \0\\")
            return np.array(text.split(b"\\") if text else [], dtype="S").astype(np.float64)
        return np.asarray([float(number) for number in value or ()], dtype=np.float64)
    except (TypeError, ValueError):
        return np.full(3, np.nan)


def _fill(plane: Mask, polygons: Sequence[tuple[str, Any]], warn: Callable[[str], None], place: int) -> None:
    """Combine a slice's polygons, biggest first: one inside another is a hole, one inside a hole an island, others are added.

    Edges belong to the region: those of a filled polygon are inside, those of a hole outside. CLOSEDPLANAR_XOR is applied as XOR.
    """
    filled = np.zeros(plane.shape, dtype=np.bool_)
    unique = {(kind, points.tobytes()): (kind, points) for kind, points in polygons}  # drawn twice is not a hole
    classed = [(kind, *_rasterised(plane.shape, points)) for kind, points in unique.values()]
    for kind, box, labels in sorted(classed, key=lambda item: -int(np.count_nonzero(item[2]))):
        there, covered, inner = filled[box], labels > 0, labels == 1
        inside = int(np.count_nonzero(there & inner))
        if kind == _XOR or (inside and there[covered].all()):
            there ^= inner if inside else covered
        else:
            if inside:
                warn(f": polygons overlap in part on slice {place}; their union is used")
            there |= covered
    plane |= filled


def _rasterised(shape: tuple[int, ...], points: Any) -> tuple[tuple[slice, slice], npt.NDArray[np.uint8]]:
    """Return the box of the plane around a polygon, and for each voxel centre in it 0 outside, 1 inside, 2 vertex, 3 edge."""
    from skimage.measure import grid_points_in_poly

    low = np.maximum(np.floor(points.min(axis=0)).astype(int), 0)
    high = np.maximum(np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, shape), low)
    size = tuple(int(n) for n in high - low)
    labels = np.zeros(size, dtype=np.uint8)
    if all(size):
        labels = np.asarray(grid_points_in_poly(size, points - low, binarize=False), dtype=np.uint8)
    return (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))), labels
