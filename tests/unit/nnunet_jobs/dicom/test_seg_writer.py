"""A segmentation written as DICOM SEG: the same mask in the same place, with the patient, the model and the codes, each time the same."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.steps.segment_codes import SegmentCodes, parse_segment_codes
from nnunet_jobs.dicom.labels import label_volume
from nnunet_jobs.dicom.model import Grid, Series
from nnunet_jobs.dicom.seg_writer import output_segments, write_seg
from support.dicom_labels import CANARY, object_of, series_of, write_enhanced, write_series

LABELS = {"background": 0, "front": 1, "back": 2}
HASH = "0123456789abcdef" * 2
OBLIQUE = (0.999679, 0.02533, 0.0, -0.0244148, 0.963561, -0.26637)


def segmentation_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random labels in a corner, so that no flip and no transposition leaves them where they are; some slices stay empty."""
    volume = np.zeros(shape, np.uint8)
    volume[2:9, 3:7, 1:4] = np.random.default_rng(seed).integers(0, 3, (7, 4, 3))
    return volume


def write(volume: np.ndarray, series: Series, grid: Grid, target: Path, **options: Any) -> str:
    segments = output_segments({"front": (1,), "back": (2,)}, options.pop("codes", {}))
    return write_seg(volume, grid, series, **{"segments": segments, "model": "m1", "model_hash": HASH, "target": target, **options})


def bits_of(ds: Any) -> np.ndarray:
    """The mask of each frame, unpacked by numpy alone."""
    bits = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")
    return bits[: ds.NumberOfFrames * ds.Rows * ds.Columns].reshape(-1, ds.Rows, ds.Columns)


def on_grid(points: np.ndarray, grid: Grid) -> set[tuple[int, ...]]:
    """Voxels that patient coordinates (LPS mm) hit, each within a twentieth of a voxel."""
    inverse = np.linalg.inv(grid.affine)
    indices = points @ inverse[:3, :3].T + inverse[:3, 3]
    assert np.abs(indices - np.rint(indices)).max(initial=0) < 0.05
    return {tuple(index) for index in np.rint(indices).astype(int).tolist()}


def voxels_by_segment(path: Path, grid: Grid) -> dict[str, set[tuple[int, ...]]]:
    """Every voxel of every segment by its place in the patient, from DICOM attributes and numpy alone."""
    ds = pydicom.dcmread(path)
    names = {item.SegmentNumber: item.SegmentLabel for item in ds.SegmentSequence}
    shared = ds.SharedFunctionalGroupsSequence[0]
    across, down = np.split(np.asarray(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float), 2)
    spacing = np.asarray(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    found: dict[str, set[tuple[int, ...]]] = {name: set() for name in names.values()}
    for frame, pixels in zip(ds.PerFrameFunctionalGroupsSequence, bits_of(ds), strict=True):
        origin = np.asarray(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(pixels)
        points = origin + columns[:, None] * across * spacing[1] + rows[:, None] * down * spacing[0]
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[names[number]] |= on_grid(points, grid)
    return found


def voxels(mask: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(index) for index in np.argwhere(mask).tolist()}


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_what_is_written_is_read_back_voxel_by_voxel(tmp_path: Path, kind: str, flipped: bool) -> None:
    series, grid = series_of(write_series(tmp_path / "s", orientation=OBLIQUE), flipped=flipped)
    volume = segmentation_of(grid.shape)
    target = tmp_path / "case.seg.dcm"
    write(volume, series, grid, target, kind=kind)
    np.testing.assert_array_equal(label_volume([object_of(target)], series, grid, None, LABELS), volume)
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [target.name]


@pytest.mark.parametrize("name", ["12-T1post-05670", "13_HCropVolume", "14_HCropVolume"])
def test_on_real_series_every_voxel_lies_where_it_lay_for_every_reader(test_data: Path, tmp_path: Path, name: str) -> None:
    import highdicom as hd
    import SimpleITK as sitk

    series, grid = series_of(sorted((test_data / "dicom" / name).glob("*.dcm")))
    image = np.stack([pydicom.dcmread(item.path).pixel_array.T for item in series.instances], axis=-1)
    volume = np.zeros(grid.shape, np.uint8)
    volume[image > np.percentile(image, 97)] = 1
    volume[image > np.percentile(image, 99)] = 2
    volume[:, :, -2:] = 0
    target = tmp_path / "case.seg.dcm"
    write(volume, series, grid, target)
    np.testing.assert_array_equal(label_volume([object_of(target)], series, grid, None, LABELS), volume)
    assert voxels_by_segment(target, grid) == {"front": voxels(volume == 1), "back": voxels(volume == 2)}
    read = hd.seg.segread(target).get_volume(combine_segments=True)
    assert on_grid(read.map_indices_to_reference(np.argwhere(read.array == 2)), grid) == voxels(volume == 2)
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(target)))
    whole = frames.size - frames.size % 8  # SimpleITK's GDCM fills up the last byte when the pixels end within it
    np.testing.assert_array_equal(frames.ravel()[:whole] > 0, bits_of(pydicom.dcmread(target)).ravel()[:whole] > 0)


def test_a_multi_frame_source_gets_its_frames_back_in_any_order(tmp_path: Path) -> None:
    series, grid = write_enhanced(tmp_path / "enhanced.dcm", order=(3, 0, 5, 1, 4, 2))
    volume = segmentation_of(grid.shape)
    write(volume, series, grid, tmp_path / "case.seg.dcm")
    np.testing.assert_array_equal(label_volume([object_of(tmp_path / "case.seg.dcm")], series, grid, None, LABELS), volume)
    assert voxels_by_segment(tmp_path / "case.seg.dcm", grid)["back"] == voxels(volume == 2)


def test_patient_and_study_are_the_sources_and_model_and_codes_are_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg", StudyDescription="Schädel")
    series, grid = series_of(paths)
    codes = parse_segment_codes(
        {"front": ["279336005", "SCT", "Anterior part"], "back": {"category": ["123037004", "SCT", "Anatomical Structure"]}}
    )
    model = "m" * 60
    write(segmentation_of(grid.shape), series, grid, tmp_path / "case.seg.dcm", codes=codes, model=model)
    ds, source = pydicom.dcmread(tmp_path / "case.seg.dcm"), pydicom.dcmread(paths[0])
    for keyword in ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "PatientID", "AccessionNumber",
                    "PatientBirthDate", "PatientSex", "FrameOfReferenceUID"):  # fmt: skip
        assert ds[keyword].value == source[keyword].value, keyword
    assert str(ds.PatientName) == "Müller^Jörg"
    assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == series.series_uid
    assert HASH[:16] in ds.ContentDescription
    assert "mmmm" in ds.ContentDescription
    assert len(ds.ContentDescription) <= 64
    front, back = ds.SegmentSequence
    assert front.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Anterior part"
    assert front.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Tissue"
    assert back.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    algorithm = front.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "nnU-Net"
    assert algorithm.AlgorithmParameters == f"model={model},hash={HASH}"
    assert len(algorithm.AlgorithmVersion) <= 64


@pytest.mark.parametrize("multi_frame", [False, True])
def test_what_single_headers_lack_comes_from_the_grid_and_the_series(tmp_path: Path, multi_frame: bool) -> None:
    """SliceThickness may be empty (type 2), and nothing can be written without it; anonymisation may have cut a frame of reference."""
    if multi_frame:
        _, grid = write_enhanced(tmp_path / "enhanced.dcm", order=(3, 0, 5, 1, 4, 2))
        ds = pydicom.dcmread(tmp_path / "enhanced.dcm")
        del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness
        ds.save_as(tmp_path / "enhanced.dcm")
        series = object_of(tmp_path / "enhanced.dcm")
    else:
        paths = write_series(tmp_path / "s", spacing=(0.8, 0.9, 2.25))
        for number, path in enumerate(paths):
            ds = pydicom.dcmread(path)
            if number < 3:
                del ds.SliceThickness
            else:
                ds.SliceThickness = None
            if number == 4:
                del ds.FrameOfReferenceUID
            ds.save_as(path)
        series, grid = series_of(paths)
    volume = segmentation_of(grid.shape)
    target = tmp_path / "case.seg.dcm"
    write(volume, series, grid, target)
    written = pydicom.dcmread(target)
    assert written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == (2.5 if multi_frame else 2.25)
    assert written.FrameOfReferenceUID == series.frame_of_reference_uid
    np.testing.assert_array_equal(label_volume([object_of(target)], series, grid, None, LABELS), volume)


def test_the_same_work_has_the_same_uids_and_other_work_others(tmp_path: Path) -> None:
    series, grid = series_of(write_series(tmp_path / "s"))
    volume = segmentation_of(grid.shape)
    first = write(volume, series, grid, tmp_path / "a.seg.dcm")
    again = write(volume.astype(np.int16), series, grid, tmp_path / "b.seg.dcm")
    a, b = pydicom.dcmread(tmp_path / "a.seg.dcm"), pydicom.dcmread(tmp_path / "b.seg.dcm")
    for item in (*a.ContributingEquipmentSequence, *b.ContributingEquipmentSequence):
        del item.ContributionDateTime
    assert first == again == a.SOPInstanceUID
    changed = {element.keyword for element in a if b.get(element.tag) != element}
    assert changed <= {"InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"}
    other_model = write(volume, series, grid, tmp_path / "c.seg.dcm", model_hash="f" * 32)
    other_content = write(segmentation_of(grid.shape, seed=1), series, grid, tmp_path / "d.seg.dcm")
    assert len({first, other_model, other_content}) == 3
    assert pydicom.dcmread(tmp_path / "d.seg.dcm").SeriesInstanceUID == a.SeriesInstanceUID
    assert pydicom.dcmread(tmp_path / "c.seg.dcm").SeriesInstanceUID != a.SeriesInstanceUID


def test_regions_become_overlapping_segments_and_a_labelmap_refuses_them(tmp_path: Path) -> None:
    series, grid = series_of(write_series(tmp_path / "s"))
    volume = segmentation_of(grid.shape)
    segments = output_segments({"whole": (1, 2), "core": (2,)}, {})
    write(volume, series, grid, tmp_path / "case.seg.dcm", segments=segments)
    found = voxels_by_segment(tmp_path / "case.seg.dcm", grid)
    assert found == {"whole": voxels(volume > 0), "core": voxels(volume == 2)}
    with pytest.raises(ConfigError, match="overlap"):
        write(volume, series, grid, tmp_path / "case.seg.dcm", segments=segments, kind="LABELMAP")


def test_an_empty_segmentation_is_an_object_too(tmp_path: Path) -> None:
    series, grid = series_of(write_series(tmp_path / "s"))
    write(np.zeros(grid.shape, np.uint8), series, grid, tmp_path / "case.seg.dcm")
    assert not label_volume([object_of(tmp_path / "case.seg.dcm")], series, grid, None, LABELS).any()


def test_a_grid_that_is_not_the_sources_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    series, grid = series_of(write_series(tmp_path / "s"))
    shifted = grid.affine.copy()
    shifted[:3, 3] += shifted[:3, 0]
    turned = Grid(shape=grid.shape, affine=grid.affine, sop_uids=grid.sop_uids[::-1])
    for wrong in (Grid(shape=grid.shape, affine=shifted, sop_uids=grid.sop_uids), turned):
        with pytest.raises(DataError) as caught:
            write(segmentation_of(grid.shape), series, wrong, tmp_path / "case.seg.dcm")
        assert [str(fault.code) for fault in caught.value.faults] == ["label_grid"]
    with pytest.raises(DataError, match="shape"):
        write(np.zeros((3, 3, 3), np.uint8), series, grid, tmp_path / "case.seg.dcm")
    assert not list(tmp_path.glob("*.dcm"))


def test_codes_of_unknown_labels_and_malformed_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match="not a label"):
        output_segments({"front": (1,)}, {"frnt": SegmentCodes()})
    for wrong in (["1", "SCT"], ["1" * 17, "SCT", "x"], {"kind": ["1", "SCT", "x"]}, "liver", ["1", "SCT", "a\\b"]):
        with pytest.raises(ValueError, match="front"):
            parse_segment_codes({"front": wrong})


def test_fault_55_odd_patient_values_are_carried_and_never_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    odd = {"PatientName": "Canary Yellow (no caret) " + 50 * "y", "PatientBirthDate": "1943", "PatientSex": "female"}
    import pydicom.config

    before = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        series, grid = series_of(write_series(tmp_path / "s", **odd))
    finally:
        pydicom.config.settings.writing_validation_mode = before
    caplog.set_level(logging.DEBUG)
    write(segmentation_of(grid.shape), series, grid, tmp_path / "case.seg.dcm")
    ds = pydicom.dcmread(tmp_path / "case.seg.dcm")
    assert {keyword: str(ds[keyword].value) for keyword in odd} == odd
    told = caplog.text + "".join(str(item.message) for item in recwarn)
    for secret in ("Canary", "1943", CANARY["PatientID"], CANARY["AccessionNumber"], series.series_uid):
        assert secret not in told


def test_dcmtk_reads_it_without_a_complaint(tmp_path: Path) -> None:
    program = shutil.which("dcmdump")
    if program is None:
        pytest.skip("dcmdump is not installed (package dcmtk)")
    series, grid = series_of(write_series(tmp_path / "s"))
    write(segmentation_of(grid.shape), series, grid, tmp_path / "case.seg.dcm")
    done = subprocess.run([program, "-q", str(tmp_path / "case.seg.dcm")], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert not done.stderr
    assert f"nnU-Net m1 {HASH}" in done.stdout
