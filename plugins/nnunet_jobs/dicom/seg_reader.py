"""Reads DICOM SEG segment by segment onto the grid of its reference series, each frame by its reference and its own geometry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.dicom.model import Grid, Series
from nnunet_jobs.dicom.reading import read_file
from nnunet_jobs.dicom.references import items, references_of
from nnunet_jobs.dicom.segments import LabelFaults, Mask, Segment, quiet_libraries, shown_name
from nnunet_jobs.faults.codes import Code

# Largest distance of a frame's corner from the grid's voxel centre, in voxels: above rounding of decimal strings, below other grids.
_TOLERANCE = 0.1
_ORIENTATION, _MEASURES, _POSITION = "PlaneOrientationSequence", "PixelMeasuresSequence", "PlanePositionSequence"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """A frame's position on the grid: index of its first pixel, and the steps along its columns and rows, in whole voxels.

    ``slices`` are those that it refers to: empty when it refers to none, None when it refers to images of another grid.
    """

    number: int
    origin: npt.NDArray[np.int64] | None
    along_column: npt.NDArray[np.int64]
    along_row: npt.NDArray[np.int64]
    slices: frozenset[int] | None


def read_seg(path: Path, *, reference: Series, grid: Grid, source: str, threshold: float, report: LabelFaults) -> list[Segment]:
    """Return the segments of one SEG object. Faults of the object are reported here, faults of a frame when it is painted.

    Args:
        reference: The series that the object must describe.
        grid: Voxel grid of that series.
        source: Name of the object in faults.
        threshold: Share of a fractional segment's maximum from which a voxel belongs to it.
    """
    quiet_libraries()
    from highdicom.seg import Segmentation

    seg = Segmentation.from_dataset(read_file(path), copy=False)
    if not _describes(seg, reference, grid, source, report):
        return []
    try:
        by_number = _frames_by_segment(seg, reference, grid)
        if problem := _incomplete(seg, by_number):
            report.error(Code.LABEL_OBJECT, f"{source}: {problem}; export it again")
            return []
        reader = _Reader(seg, source, threshold=threshold, needs_reference=not _same_frame(seg, reference))
        return [
            Segment(
                name=str(item.SegmentLabel),
                shown=shown_name(item.SegmentLabel, seg),
                source=source,
                paint=reader.painter(int(item.SegmentNumber), by_number.get(int(item.SegmentNumber), by_number.get(0, []))),
            )
            for item in seg.SegmentSequence
        ]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        message = f"{source}: lacks what places its frames in the patient; export it with plane positions"
        report.error(Code.LABEL_OBJECT, message)
        return []


def _describes(seg: Any, reference: Series, grid: Grid, source: str, report: LabelFaults) -> bool:
    frame, same_frame = reference.frame_of_reference_uid, _same_frame(seg, reference)
    if not same_frame and seg.get("FrameOfReferenceUID") and frame:
        report.error(Code.LABEL_REFERENCE, f"{source}: is in another frame of reference than its series; register and resample it first")
        return False
    found = references_of(seg)
    if not found.series and not found.images and not same_frame:
        message = f"{source}: says neither which series it describes nor in which frame of reference; export it again"
        report.error(Code.LABEL_REFERENCE, message)
        return False
    images = {instance.sop_uid for instance in reference.instances} | set(grid.sop_uids)
    if not found.point_to(series=reference.series_uid, images=images, frame=frame):
        report.error(Code.LABEL_REFERENCE, f"{source}: describes another series; segment on this one, or choose the one it describes")
        return False
    return True


def _incomplete(seg: Any, by_number: dict[int, list[_Frame]]) -> str | None:
    """Say which frames of an object would be lost or belong to no segment; None if each has its place and its segment."""
    numbers = [int(item.SegmentNumber) for item in items(seg, "SegmentSequence")]
    frames = sum(map(len, by_number.values()))
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        return f"gives the number {twice[0]} to several segments"
    if frames != int(seg.NumberOfFrames):
        return f"places {frames} frames and holds {int(seg.NumberOfFrames)}"
    if unnamed := sorted(set(by_number) - {0, *numbers}):
        return f"has frames of segment {unnamed[0]}, which it does not describe"
    if str(seg.SegmentationType) == "FRACTIONAL" and not int(seg.get("MaximumFractionalValue") or 0) > 0:
        return "is fractional and has no MaximumFractionalValue above 0"
    return None


def _same_frame(seg: Any, reference: Series) -> bool:
    return bool(reference.frame_of_reference_uid) and str(seg.get("FrameOfReferenceUID", "")) == reference.frame_of_reference_uid


def _frames_by_segment(seg: Any, reference: Series, grid: Grid) -> dict[int, list[_Frame]]:
    """Return the frames of each segment; a LABELMAP's frames belong to all of them and have the key 0."""
    shared: Any = next(items(seg, "SharedFunctionalGroupsSequence"), {})
    inverse = np.linalg.inv(grid.affine)
    place_of = _places(reference, grid)
    by_number: dict[int, list[_Frame]] = {}
    for number, item in enumerate(seg.PerFrameFunctionalGroupsSequence, start=1):

        def group(name: str, item: Any = item) -> Any:
            return (item if name in item else shared)[name][0]

        spacing = [float(value) for value in group(_MEASURES).PixelSpacing]
        orientation = [float(value) for value in group(_ORIENTATION).ImageOrientationPatient]
        position = [float(value) for value in group(_POSITION).ImagePositionPatient]
        origin, along_column, along_row = _placed(inverse, position, orientation, spacing, seg.Rows, seg.Columns)
        holder = item if "SegmentIdentificationSequence" in item else shared
        identified = holder.get("SegmentIdentificationSequence")
        segment = int(identified[0].ReferencedSegmentNumber) if identified else 0
        frame = _Frame(number=number, origin=origin, along_column=along_column, along_row=along_row, slices=_slices(item, place_of))
        by_number.setdefault(segment, []).append(frame)
    return by_number


def _placed(inverse: Any, position: Any, orientation: Any, spacing: Any, rows: int, columns: int) -> Any:
    """Return the index of a frame's first pixel and its two steps in voxels; no origin if the frame is not on the grid."""
    step_column = inverse[:3, :3] @ (np.asarray(orientation[:3]) * spacing[1])
    step_row = inverse[:3, :3] @ (np.asarray(orientation[3:]) * spacing[0])
    origin = inverse[:3, :3] @ np.asarray(position) + inverse[:3, 3]
    whole = [np.rint(vector).astype(np.int64) for vector in (origin, step_column, step_row)]
    worst = max(
        float(np.abs((origin + column * step_column + row * step_row) - (whole[0] + column * whole[1] + row * whole[2])).max())
        for column in (0, columns - 1)
        for row in (0, rows - 1)
    )
    steps_fit = all(np.abs(step).sum() == 1 for step in whole[1:]) and not (whole[1] @ whole[2])
    return (whole[0] if steps_fit and worst <= _TOLERANCE else None), whole[1], whole[2]


def _places(reference: Series, grid: Grid) -> dict[tuple[str, int], int]:
    """Return the slice of each image of the grid, by SOPInstanceUID and frame number (0 for single-frame images)."""
    if grid.frames:
        return {(grid.sop_uids[0], frame): place for place, frame in enumerate(grid.frames)}
    return {(uid, 0): place for place, uid in enumerate(grid.sop_uids)}


def _slices(item: Any, place_of: dict[tuple[str, int], int]) -> frozenset[int] | None:
    uids = {uid for uid, _ in place_of}
    found: set[int] = set()
    mentioned = False
    for derivation in item.get("DerivationImageSequence") or ():
        for image in derivation.get("SourceImageSequence") or ():
            mentioned = True
            uid = str(image.ReferencedSOPInstanceUID)
            numbers = image.get("ReferencedFrameNumber")
            frames = [numbers] if isinstance(numbers, int | str) else list(numbers or ())
            if uid in uids and not frames:
                found |= {place for (other, _), place in place_of.items() if other == uid}
            found |= {place_of[key] for frame in frames for key in ((uid, int(frame)), (uid, 0)) if key in place_of}
    return None if mentioned and not found else frozenset(found)


class _Reader:
    """Decodes frames when they are painted, and a LABELMAP's frames once for all segments."""

    def __init__(self, seg: Any, source: str, *, threshold: float, needs_reference: bool) -> None:
        self._seg, self._source, self._threshold, self._needs_reference = seg, source, threshold, needs_reference
        self._type = str(seg.SegmentationType)
        self._decoded: dict[int, Any] = {}
        described = {int(item.SegmentNumber) for item in items(seg, "SegmentSequence")}
        padding = seg.get("PixelPaddingValue")
        self._known = np.asarray(sorted({0, *described, *([padding] if isinstance(padding, int) else [])}))
        self._undescribed = False

    def painter(self, segment: int, frames: list[_Frame]) -> Any:
        """Return the function that sets a segment's voxels in a mask."""

        def paint(mask: Mask, report: LabelFaults) -> None:
            for frame in frames:
                pixels = self._covered(segment, frame.number, report)
                rows, columns = np.nonzero(pixels)
                if rows.size and not self._paint_frame(mask, frame, rows, columns, report):
                    return  # the other frames have the same fault

        return paint

    def _covered(self, segment: int, frame: int, report: LabelFaults) -> Any:
        if self._type == "LABELMAP":
            if frame not in self._decoded:
                self._decoded[frame] = self._seg.get_stored_frame(frame)
                strangers = np.setdiff1d(self._decoded[frame], self._known)
                if strangers.size and not self._undescribed:
                    self._undescribed = True  # reported once
                    message = f"frame {frame} has voxels of segment {int(strangers[0])}, which it does not describe; export it again"
                    report.error(Code.LABEL_OBJECT, f"{self._source}: {message}")
            return self._decoded[frame] == segment
        pixels = self._seg.get_stored_frame(frame)
        if self._type == "FRACTIONAL":
            return pixels >= self._threshold * float(self._seg.MaximumFractionalValue)
        return pixels != 0

    def _paint_frame(self, mask: Mask, frame: _Frame, rows: Any, columns: Any, report: LabelFaults) -> bool:
        where = f"{self._source}: frame {frame.number}"
        if frame.origin is None:
            fix = "resample it to the series' grid, or segment on the series itself"
            report.error(Code.LABEL_GRID, f"{where} is not on the voxels of its series; {fix}")
            return False
        if frame.slices is None or (self._needs_reference and not frame.slices):
            message = "refers to images that are not of this series" if frame.slices is None else "refers to no image"
            report.error(Code.LABEL_REFERENCE, f"{where} {message}; export it again from the series it describes")
            return False
        index = frame.origin[:, None] + frame.along_column[:, None] * columns + frame.along_row[:, None] * rows
        if (index < 0).any() or (index >= np.asarray(mask.shape)[:, None]).any():
            report.error(Code.LABEL_GRID, f"{where} marks voxels outside its series; export the whole series")
            return False
        slices = set(np.unique(index[2]).tolist())
        in_plane = not frame.along_column[2] and not frame.along_row[2]
        if in_plane and frame.slices and not slices <= frame.slices:
            message = f"lies at slice {min(slices)} but refers to slice {min(frame.slices)}; one of the two is wrong"
            report.error(Code.LABEL_REFERENCE, f"{where} {message}, so it is not used")
            return False
        mask[tuple(index)] = True
        return True
