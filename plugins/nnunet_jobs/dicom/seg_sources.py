"""Checks before any work what a DICOM SEG needs of its source images, and completes it from the grid where possible."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnunet_jobs.contract.failure import DataError, Fault
from nnunet_jobs.dicom.model import Grid, Series
from nnunet_jobs.dicom.reading import read_file
from nnunet_jobs.faults.codes import Code

_TOLERANCE = 0.1  # voxels between a source slice's position and the grid


def seg_faults(series: Series) -> list[Fault]:
    """Return the reasons why a segmentation of these images cannot be written as DICOM SEG."""
    if series.frame_of_reference_uid:
        return []
    message = (
        f"a DICOM SEG needs FrameOfReferenceUID, which none of the series' {len(series.instances)} images has; "
        "export them with it (anonymisation may replace it, not remove it), or predict without dicom_seg"
    )
    return [Fault(code=Code.DICOM_GEOMETRY_MISSING, message=message)]


def _complete(source: Any, reference: Series, grid: Grid) -> None:
    """Add what single images or all of them lack, from the series or the grid."""
    if not source.get("FrameOfReferenceUID"):
        source.FrameOfReferenceUID = reference.frame_of_reference_uid
    measures = [
        group.PixelMeasuresSequence[0]
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
        for group in source.get(keyword) or ()
        if group.get("PixelMeasuresSequence")
    ]
    for holder in measures if source.get("NumberOfFrames") and measures else [source]:
        if not holder.get("SliceThickness"):
            holder.SliceThickness = f"{grid.spacing[2]:.10g}"


def source_headers(reference: Series, grid: Grid) -> list[Any]:
    """Return the source images' headers in the grid's order, after checking the position of each.

    They have all that a SEG needs: if a header has no slice thickness, it gets the grid's.

    Raises:
        DataError: A header lacks what cannot be replaced, or its position differs from the grid.
    """
    for fault in seg_faults(reference):
        raise DataError(f"no DICOM SEG: {fault.message}", faults=[fault])
    by_uid = {instance.sop_uid: instance.path for instance in reference.instances}
    missing = [uid for uid in grid.sop_uids if uid not in by_uid]
    if missing:
        raise _unusable(Code.IMAGE_MISSING, f"{len(missing)} source images are missing from their series")
    try:
        sources = [read_file(by_uid[uid], stop_before_pixels=True) for uid in grid.sop_uids]
        for source in sources:
            _complete(source, reference, grid)
        if grid.frames:
            return sources
        inverse = np.linalg.inv(grid.affine)
        corner = np.asarray([grid.shape[0] - 1, grid.shape[1] - 1, 0, 0], dtype=np.float64)
        for place, source in enumerate(sources):
            across, down = (np.asarray(source.ImageOrientationPatient[part], float) for part in (slice(0, 3), slice(3, 6)))
            spacing = [float(value) for value in source.PixelSpacing]
            first = np.asarray([float(value) for value in source.ImagePositionPatient])
            last = first + across * spacing[1] * corner[0] + down * spacing[0] * corner[1]
            for point, index in ((first, (0, 0, place)), (last, (grid.shape[0] - 1, grid.shape[1] - 1, place))):
                if np.abs(inverse[:3, :3] @ point + inverse[:3, 3] - index).max() > _TOLERANCE:
                    raise _unusable(Code.LABEL_GRID, f"the voxels of slice {place} are not where its source image is")
    except (AttributeError, TypeError, ValueError, OSError, IndexError):
        raise _unusable(Code.UNREADABLE, "a source image lacks what places it in the patient; export the original images") from None
    return sources


def _unusable(code: Code, message: str) -> DataError:
    return DataError(f"no DICOM SEG: {message}", faults=[Fault(code=code, message=message)])
