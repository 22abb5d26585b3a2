"""Label objects that contradict themselves: what they outline is read whole, or the object is refused, never a part of it used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.dicom.labels import label_volume
from support.dicom_labels import object_of, series_of, to_patient, write_rtstruct, write_seg_object, write_series

LABELS = {"background": 0, "front": 1, "back": 2}
SQUARE = np.asarray([(2.0, 2.0), (6.0, 2.0), (6.0, 6.0), (2.0, 6.0)])


def changed(path: Path, change: Callable[[Any], None]) -> None:
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(path)


def divide_contours(ds: Any) -> None:
    whole = ds.ROIContourSequence[0]
    rest = Dataset()
    rest.ReferencedROINumber, rest.ContourSequence = 1, list(whole.ContourSequence[1:])
    whole.ContourSequence = whole.ContourSequence[:1]
    ds.ROIContourSequence = [whole, *ds.ROIContourSequence[1:], rest]


def unname_last(ds: Any) -> None:
    ds.StructureSetROISequence = ds.StructureSetROISequence[:-1]


def one_number_for_both(ds: Any) -> None:
    ds.StructureSetROISequence[1].ROINumber = ds.ROIContourSequence[1].ReferencedROINumber = 1


def rtstruct(tmp_path: Path, change: Callable[[Any], None]) -> np.ndarray:
    series, grid = series_of(write_series(tmp_path / "series"))
    rois = {
        "front": [("CLOSED_PLANAR", to_patient(SQUARE, k, grid), k) for k in (1, 2, 3)],
        "back": [("CLOSED_PLANAR", to_patient(SQUARE, 4, grid), 4)],
    }
    found = write_rtstruct(tmp_path / "rt.dcm", series, grid, rois)
    changed(tmp_path / "rt.dcm", change)
    return label_volume([object_of(tmp_path / "rt.dcm", refers_to=found.refers_to)], series, grid, None, LABELS)


def test_contours_of_one_roi_in_two_items_are_all_read(tmp_path: Path) -> None:
    volume = rtstruct(tmp_path, divide_contours)
    assert [int((volume[:, :, k] == 1).sum()) for k in range(1, 4)] == [25, 25, 25]
    assert int((volume == 2).sum()) == 25


@pytest.mark.parametrize(
    ("change", "words"), [(unname_last, "contours of ROI 2, which it does not name"), (one_number_for_both, "number 1 to two ROIs")]
)
def test_contours_that_no_name_belongs_to_are_refused(tmp_path: Path, change: Callable[[Any], None], words: str) -> None:
    with pytest.raises(DataError) as caught:
        rtstruct(tmp_path, change)
    assert words in " ".join(fault.message for fault in caught.value.faults)


def undescribe(ds: Any) -> None:
    ds.SegmentSequence = ds.SegmentSequence[:-1]


def leave_out_a_frame(ds: Any) -> None:
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:-1]


def one_number(ds: Any) -> None:
    ds.SegmentSequence[-1].SegmentNumber = ds.SegmentSequence[-2].SegmentNumber


def no_maximum(ds: Any) -> None:
    ds.MaximumFractionalValue = 0


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("BINARY", undescribe, "frames of segment 2, which it does not describe"),
        ("FRACTIONAL", undescribe, "frames of segment 2, which it does not describe"),
        ("LABELMAP", undescribe, "voxels of segment 2, which it does not describe"),
        ("BINARY", leave_out_a_frame, "frames and holds"),
        ("LABELMAP", leave_out_a_frame, "frames and holds"),
        ("BINARY", one_number, "number 1 to several segments"),
        ("FRACTIONAL", no_maximum, "no MaximumFractionalValue above 0"),
    ],
)
def test_frames_that_no_segment_or_place_belongs_to_are_refused(
    tmp_path: Path, kind: str, change: Callable[[Any], None], words: str
) -> None:
    paths = write_series(tmp_path / "series")
    series, grid = series_of(paths)
    front, back = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    front[2:8, 3:9, 1:4], back[9:11, 1:3, 3:5] = True, True
    found = write_seg_object(tmp_path / "seg.dcm", paths, {"front": front, "back": back}, kind=kind)
    changed(tmp_path / "seg.dcm", change)
    with pytest.raises(DataError) as caught:
        label_volume([object_of(tmp_path / "seg.dcm", refers_to=found.refers_to)], series, grid, None, LABELS)
    [fault] = caught.value.faults
    assert words in fault.message
