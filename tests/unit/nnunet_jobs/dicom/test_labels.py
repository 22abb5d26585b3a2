"""Labels from SEG and RTSTRUCT: on the right voxels, by the right name, or refused with the reason."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence

from nnunet_jobs.contract.failure import ConfigError, DataError, Fault
from nnunet_jobs.dicom.labels import label_volume
from nnunet_jobs.dicom.model import Grid, Series
from support.dicom_labels import contours_of, object_of, series_of, to_patient, uid, write_rtstruct, write_seg_object, write_series

LABELS = {"background": 0, "front": 1, "back": 2}
OBLIQUE = (0.999679, 0.02533, 0.0, -0.0244148, 0.963561, -0.26637)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return write_series(tmp_path / "series", orientation=OBLIQUE)


def masks(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Two asymmetric bodies, one with a hole, with empty slices around them."""
    front, back = np.zeros(shape, bool), np.zeros(shape, bool)
    front[2:8, 3:9, 1:4] = True
    front[5, 6, 2] = False
    front[2, 3, 1] = False
    back[9:11, 1:3, 3:5] = True
    return {"Front": front, "BACK ": back}


def expected(found: Mapping[str, np.ndarray]) -> np.ndarray:
    volume = np.zeros(next(iter(found.values())).shape, np.uint8)
    for value, mask in enumerate(found.values(), start=1):
        volume[mask] = value
    return volume


def read(objects: list[Series], series: Series, grid: Grid, rules: Any = None, labels: Any = None) -> np.ndarray:
    """The label volume, of an input without a warning."""
    warnings: list[Fault] = []
    volume = label_volume(objects, series, grid, rules, labels or LABELS, on_warning=warnings.append)
    assert not warnings
    return volume


def faults_of(objects: list[Series], series: Series, grid: Grid, rules: Any = None, labels: Any = None) -> list[tuple[str, str]]:
    with pytest.raises(DataError) as caught:
        label_volume(objects, series, grid, rules, labels or LABELS)
    return [(str(fault.code), fault.message) for fault in caught.value.faults]


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("flipped", [False, True])
def test_segments_of_every_type_land_on_their_voxels_in_either_slice_order(
    paths: list[Path], tmp_path: Path, kind: str, flipped: bool
) -> None:
    series, grid = series_of(paths)
    found = masks(grid.shape)
    seg = write_seg_object(tmp_path / "seg.dcm", paths, found, kind=kind)
    assert pydicom.dcmread(tmp_path / "seg.dcm").NumberOfFrames < 2 * grid.shape[2]  # empty frames are left out
    series, grid = series_of(paths, flipped=flipped)
    volume = read([seg], series, grid)
    assert volume.dtype == np.uint8
    np.testing.assert_array_equal(volume, expected(found)[:, :, ::-1] if flipped else expected(found))


def test_frames_in_another_order_and_without_references_are_placed_by_geometry(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    found = masks(grid.shape)
    seg = write_seg_object(tmp_path / "seg.dcm", paths[::-1], {name: mask[:, :, ::-1] for name, mask in found.items()})
    np.testing.assert_array_equal(read([seg], series, grid), expected(found))
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    for item in ds.PerFrameFunctionalGroupsSequence:
        del item.DerivationImageSequence
    ds.save_as(tmp_path / "bare.dcm")
    np.testing.assert_array_equal(read([object_of(tmp_path / "bare.dcm")], series, grid), expected(found))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_seg_with_a_flipped_grid_of_its_own_is_placed_right(paths: list[Path], tmp_path: Path, axis: int) -> None:
    series, grid = series_of(paths)
    found = masks(grid.shape)
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (grid.shape[axis] - 1)
    affine[:3, axis] *= -1
    seg = write_seg_object(tmp_path / "seg.dcm", paths, {name: np.flip(mask, axis) for name, mask in found.items()}, volume=affine)
    np.testing.assert_array_equal(read([seg], series, grid), expected(found))


def test_a_seg_of_sagittal_frames_on_the_same_voxels_is_placed_right(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    found = masks(grid.shape)
    turned = {name: mask.transpose(1, 2, 0) for name, mask in found.items()}
    seg = write_seg_object(tmp_path / "seg.dcm", paths, turned, volume=grid.affine[:, [1, 2, 0, 3]])
    np.testing.assert_array_equal(read([seg], series, grid), expected(found))


@pytest.mark.parametrize("change", ["spacing", "shift", "thickness"])
def test_a_seg_on_another_grid_is_refused_by_name(paths: list[Path], tmp_path: Path, change: str) -> None:
    series, grid = series_of(paths)
    affine = grid.affine.copy()
    if change == "spacing":
        affine[:3, 0] *= 1.2
    elif change == "shift":
        affine[:3, 3] += 0.4 * affine[:3, 1]
    else:
        affine[:3, 2] *= 1.5
    seg = write_seg_object(tmp_path / "seg.dcm", paths, masks(grid.shape), volume=affine)
    assert {code for code, _ in faults_of([seg], series, grid)} == {"label_grid"}


def test_voxels_outside_of_the_series_are_refused(paths: list[Path], tmp_path: Path) -> None:
    _, grid = series_of(paths)
    seg = write_seg_object(tmp_path / "seg.dcm", paths, masks(grid.shape))
    shorter, smaller = series_of(paths[:3])
    assert {code for code, _ in faults_of([seg], shorter, smaller)} <= {"label_grid", "label_reference"}


def test_a_seg_of_another_series_or_frame_of_reference_is_refused_by_name(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    seg = write_seg_object(tmp_path / "seg.dcm", paths, masks(grid.shape))
    other, same_place = series_of(write_series(tmp_path / "other", orientation=OBLIQUE, seed="other"))
    [(code, message)] = faults_of([seg], other, same_place)
    assert code == "label_reference"
    assert "another series" in message
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    ds.FrameOfReferenceUID = uid("elsewhere")
    ds.save_as(tmp_path / "seg.dcm")
    [(code, message)] = faults_of([seg], series, grid)
    assert code == "label_reference"
    assert "frame of reference" in message


def test_a_frame_whose_reference_and_position_disagree_is_refused(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    seg = write_seg_object(tmp_path / "seg.dcm", paths, masks(grid.shape))
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = grid.sop_uids[5]
    ds.save_as(tmp_path / "seg.dcm")
    [(code, message)] = faults_of([seg], series, grid)
    assert code == "label_reference"
    assert "but refers to slice 5" in message


def test_a_fractional_segment_covers_a_voxel_from_the_threshold_on(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    share = np.zeros(grid.shape, np.float32)
    share[3, 4, 2], share[4, 4, 2], share[5, 4, 2] = 0.3, 0.6, 1.0
    seg = write_seg_object(tmp_path / "seg.dcm", paths, {"front": share}, kind="FRACTIONAL")
    for threshold, voxels in ((None, 2), (0.25, 3), (0.9, 1)):
        rules = {"threshold": threshold} if threshold else None
        assert np.count_nonzero(read([seg], series, grid, rules)) == voxels


# --- names ----------------------------------------------------------------------------------------------------------
def test_segments_are_renamed_fused_and_skipped_by_rule(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    found = {name: np.zeros(grid.shape, bool) for name in ("Kidney L", "Kidney R", "GTV (boost)", "body")}
    for place, mask in enumerate(found.values()):
        mask[2 * place : 2 * place + 2, 2:5, 2] = True
    seg = write_seg_object(tmp_path / "seg.dcm", paths, found)
    rules = {"front": ["kidney [lr]"], "back": ["gtv (BOOST)"], "skip": [".*"]}
    volume = read([seg], series, grid, rules)
    np.testing.assert_array_equal(volume == 1, found["Kidney L"] | found["Kidney R"])
    np.testing.assert_array_equal(volume == 2, found["GTV (boost)"])
    codes = faults_of([seg], series, grid, {"front": ["kidney .*"], "back": [".*l"]})
    assert [code for code, _ in codes] == ["segment_ambiguous", "segment_unknown", "segment_unknown"]


def test_overlap_is_a_fault_unless_a_priority_resolves_it(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    front, back = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    front[2:6, 2:6, 2], back[5:8, 2:6, 2] = True, True
    seg = write_seg_object(tmp_path / "seg.dcm", paths, {"front": front, "back": back})
    [(code, message)] = faults_of([seg], series, grid)
    assert code == "label_overlap"
    assert "4 voxels" in message
    assert [code for code, _ in faults_of([seg], series, grid, {"priority": ["back"]})] == ["label_overlap"]
    for first, second in (("front", "back"), ("back", "front")):
        volume = read([seg], series, grid, {"priority": [first, second]})
        assert set(volume[front & back].tolist()) == {LABELS[first]}
        assert np.count_nonzero(volume) == np.count_nonzero(front | back)


def test_the_same_segment_in_two_objects_is_a_fault(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    found = masks(grid.shape)
    seg = write_seg_object(tmp_path / "seg.dcm", paths, {"front": found["Front"]})
    again = write_rtstruct(tmp_path / "rt.dcm", series, grid, {"FRONT": contours_of(found["Front"], grid)})
    other = write_rtstruct(tmp_path / "other.dcm", series, grid, {"back": contours_of(found["BACK "], grid)})
    assert [code for code, _ in faults_of([seg, again], series, grid)] == ["segment_twice"]
    np.testing.assert_array_equal(read([seg, other], series, grid), expected(found))


def test_wrong_rules_and_labels_are_config_errors(paths: list[Path]) -> None:
    series, grid = series_of(paths)
    wrong: list[tuple[Any, Any]] = [
        ({"frnt": ["x"]}, LABELS),
        ({"front": ["("]}, LABELS),
        ({"front": []}, LABELS),
        ({"front": 3}, LABELS),
        ({"threshold": 2}, LABELS),
        ({"priority": ["nothing"]}, LABELS),
        (None, {"background": 0, "whole": [1, 2]}),
        (None, {"background": 0, "skip": 1}),
    ]
    for rules, labels in wrong:
        with pytest.raises(ConfigError, match="label_"):
            label_volume([], series, grid, rules, labels)
    assert [code for code, _ in faults_of([], series, grid)] == ["label_missing"]


def test_values_above_255_give_a_wider_label(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    seg = write_seg_object(tmp_path / "seg.dcm", paths, {"front": masks(grid.shape)["Front"]})
    volume = read([seg], series, grid, labels={"background": 0, "front": 300})
    assert volume.dtype == np.uint16
    assert set(np.unique(volume).tolist()) == {0, 300}


# --- contours -------------------------------------------------------------------------------------------------------
def test_contours_of_a_mask_with_holes_give_the_mask_back(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    rng = np.random.default_rng(5)
    front = np.zeros(grid.shape, bool)
    front[2:10, 2:9, 1:5] = rng.random((8, 7, 4)) > 0.35  # many holes, islands and saddles
    rtstruct = write_rtstruct(tmp_path / "rt.dcm", series, grid, {"front": contours_of(front, grid)})
    np.testing.assert_array_equal(read([rtstruct], series, grid) == 1, front)


def test_keyhole_xor_and_nested_contours_make_the_same_ring(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    outer = [(0.5, 0.5), (9.5, 0.5), (9.5, 8.5), (0.5, 8.5)]
    inner = [(3.5, 3.5), (6.5, 3.5), (6.5, 5.5), (3.5, 5.5)]
    ring = np.zeros(grid.shape, bool)
    ring[1:10, 1:9, 2] = True
    ring[4:7, 4:6, 2] = False
    keyhole = [*outer, outer[0], inner[0], *inner[::-1], outer[0]]
    made = {
        "keyhole": [("CLOSED_PLANAR", to_patient(keyhole, 2, grid), 2)],
        "nested": [("CLOSED_PLANAR", to_patient(points, 2, grid), None) for points in (inner, outer)],
        "xor": [("CLOSEDPLANAR_XOR", to_patient(points, 2, grid), 2) for points in (outer, inner)],
    }
    for name, contours in made.items():
        rtstruct = write_rtstruct(tmp_path / f"{name}.dcm", series, grid, {"front": contours})
        np.testing.assert_array_equal(read([rtstruct], series, grid) == 1, ring, err_msg=name)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("between", "contour_plane", "between two slices"),
        ("oblique", "contour_plane", "oblique"),
        ("open", "contour_type", "open"),
        ("outside", "label_grid", "outside"),
        ("reference", "label_reference", "other slices"),
        ("frame", "label_reference", "frame of reference"),
        ("series", "label_reference", "another series"),
    ],
)
def test_contours_that_cannot_be_placed_are_refused_by_name(paths: list[Path], tmp_path: Path, change: str, code: str, words: str) -> None:
    series, grid = series_of(paths)
    square = [(2.0, 2.0), (6.0, 2.0), (6.0, 6.0), (2.0, 6.0)]
    points = to_patient(square, {"between": 2.5, "outside": 40.0}.get(change, 2.0), grid)
    if change == "oblique":
        points[0] += grid.affine[:3, 2] * 0.4
    contours = [("OPEN_PLANAR" if change == "open" else "CLOSED_PLANAR", points, 4 if change == "reference" else None)]
    rois: dict[str, Any] = {"front": contours}
    options = {change: uid("elsewhere")} if change in ("frame", "series") else {}
    rtstruct = write_rtstruct(tmp_path / "rt.dcm", series, grid, rois, **options)
    [(found, message)] = faults_of([rtstruct], series, grid)
    assert found == code
    assert words in message
    if change not in ("frame", "series"):
        rois["back"] = [("CLOSED_PLANAR", to_patient(square, 2, grid), 2)]
        skipped = write_rtstruct(tmp_path / "skipped.dcm", series, grid, rois)
        volume = read([skipped], series, grid, {"skip": ["front"]}, {"background": 0, "back": 1})
        assert np.count_nonzero(volume) == 25  # a skipped ROI's contours are nobody's concern


def test_points_gaps_and_overlaps_are_warned_of(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    square = np.asarray([(2.0, 2.0), (6.0, 2.0), (6.0, 6.0), (2.0, 6.0)])
    contours = [
        ("CLOSED_PLANAR", to_patient(square, 1, grid), None),
        ("CLOSED_PLANAR", to_patient(square + 1.0, 1, grid), None),
        ("CLOSED_PLANAR", to_patient(square, 4, grid), None),
        ("POINT", to_patient(square[:1], 2, grid), None),
    ]
    rtstruct = write_rtstruct(tmp_path / "rt.dcm", series, grid, {"front": contours})
    warnings: list[Fault] = []
    volume = label_volume([rtstruct], series, grid, None, LABELS, on_warning=warnings.append)
    assert sorted(str(fault.code) for fault in warnings) == ["contour_gap", "contour_overlap", "contour_type"]
    assert {fault.severity for fault in warnings} == {"warning"}
    assert np.count_nonzero(volume[:, :, 1]) == 25 + 25 - 16
    assert not volume[:, :, 2:4].any()


@pytest.mark.parametrize("implicit", [True, False])
def test_contours_of_unknown_vr_are_read_however_long_they_are(paths: list[Path], tmp_path: Path, implicit: bool) -> None:
    """The standard has the inside of such a sequence in implicit VR; some writers change the name of its VR and nothing else."""
    series, grid = series_of(paths)
    angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    contours = [
        ("CLOSED_PLANAR", to_patient(np.column_stack([5 + 3.2 * np.cos(angles), 5 + 3.2 * np.sin(angles)]), k, grid), k) for k in (1, 2)
    ]
    rtstruct = write_rtstruct(tmp_path / "rt.dcm", series, grid, {"front": contours})
    expected_volume = read([rtstruct], series, grid)
    assert np.count_nonzero(expected_volume) > 50
    ds = pydicom.dcmread(tmp_path / "rt.dcm")
    inside = DicomBytesIO()
    inside.is_implicit_VR, inside.is_little_endian = implicit, True
    write_sequence(inside, ds["ROIContourSequence"], ["iso8859"])
    assert len(inside.getvalue()) > 1 << 16, "pydicom by itself reads shorter ones"
    ds["ROIContourSequence"] = DataElement(ds["ROIContourSequence"].tag, "UN", inside.getvalue())
    ds.save_as(tmp_path / "rt.dcm")
    np.testing.assert_array_equal(read([object_of(tmp_path / "rt.dcm")], series, grid), expected_volume)


# --- what must not be told ------------------------------------------------------------------------------------------
def test_fault_55_nothing_of_the_patient_is_in_faults_warnings_or_logs(
    paths: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    series, grid = series_of(paths)
    name = "Tumour canary YELLOW MRN-7734517 1943-12-31 " + 60 * "x"
    point = [("POINT", to_patient([(1.0, 1.0)], 1, grid), None)]
    rtstruct = write_rtstruct(tmp_path / "Canary Yellow.dcm", series, grid, {name: point, "front": point})
    seg = write_seg_object(tmp_path / "Yellow.dcm", paths, {f"Canary {index}": masks(grid.shape)["Front"] for index in (1, 2)})
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    with pytest.raises(DataError) as caught:
        label_volume([rtstruct, seg], series, grid, None, LABELS)
    told = f"{caught.value} {caught.value.faults} {caplog.text}".casefold()
    assert "tumour ***" in told  # the rest must be seen to write a rule
    for secret in ("canary", "yellow", "7734517", "1943", grid.sop_uids[0], series.series_uid):
        assert secret not in told
    assert all(len(fault.message) < 250 for fault in caught.value.faults)


def test_a_broken_object_is_reported_and_never_quoted(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    seg = write_seg_object(tmp_path / "seg.dcm", paths, masks(grid.shape))
    rtstruct = write_rtstruct(tmp_path / "rt.dcm", series, grid, {"front": contours_of(masks(grid.shape)["Front"], grid)})
    whole = (tmp_path / "seg.dcm").read_bytes()
    (tmp_path / "seg.dcm").write_bytes(whole[:-60])
    (tmp_path / "rt.dcm").write_bytes(b"Canary^Yellow" * 40)
    found = faults_of([seg, rtstruct], series, grid)
    assert {code for code, _ in found} == {"unreadable"}
    assert "Canary" not in str(found)


def test_fault_57_damaged_objects_end_in_faults_and_nothing_else(paths: list[Path], tmp_path: Path) -> None:
    series, grid = series_of(paths)
    found = masks(grid.shape)
    seg = write_seg_object(tmp_path / "seg.dcm", paths, found)
    rtstruct = write_rtstruct(tmp_path / "rt.dcm", series, grid, {name: contours_of(mask, grid) for name, mask in found.items()})
    rng = np.random.default_rng(57)
    refused: list[int] = []
    for number in range(120):
        whole = seg if number % 2 else rtstruct
        data = bytearray(whole.instances[0].path.read_bytes())
        if number % 3 == 0:
            data = data[: rng.integers(132, len(data))]
        else:
            for place in rng.integers(132, len(data), rng.integers(1, 12)):
                data[place] = rng.integers(256)
        broken = tmp_path / "broken.dcm"
        broken.write_bytes(data)
        try:
            label_volume([replace(whole, instances=(replace(whole.instances[0], path=broken),))], series, grid, None, LABELS)
        except DataError as error:
            refused.append(len(error.faults))
    assert len(refused) > 60
    assert min(refused) > 0
