"""Slices that say otherwise than the rest of their series what their stored values mean: each is named, and none is shifted unseen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dicom.convert import pixel_faults, write_nifti
from nnunet_jobs.dicom.geometry import SeriesRefused, grid_of
from nnunet_jobs.dicom.values import units_of
from support.dicom import multiframe, save, scanned, slices, voxels, workers

ODD = 3  # the slice that is changed; its file is number 4


def faults_of(folder: Path) -> list[Fault]:
    """All that is wrong with the one series of a folder."""
    [series] = scanned(folder).series
    found = pixel_faults(series)
    try:
        grid = grid_of(series)
        if not found:
            write_nifti(series, grid, folder.parent / "x.nii.gz", beat=lambda: None, workers=workers())
    except SeriesRefused as refused:
        found += refused.faults
    return found


def without(*keywords: str) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        for keyword in keywords:
            delattr(ds, keyword)

    return change


def changed(**values: Any) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value)

    return change


@pytest.mark.parametrize(
    ("modality", "change", "code", "says"),
    [
        ("CT", without("RescaleIntercept"), "dicom_values", "RescaleIntercept is missing in 1 of 7 slices (file 4)"),
        ("CT", without("RescaleSlope"), "dicom_values", "RescaleSlope is missing in 1 of 7 slices (file 4)"),
        ("CT", without("RescaleSlope", "RescaleIntercept"), "dicom_values", "RescaleSlope and RescaleIntercept are missing in 1 of 7"),
        ("MR", changed(RescaleSlope=2, RescaleIntercept=0), "dicom_values", "are missing in 6 of 7 slices"),
        ("CT", changed(RescaleSlope=0), "dicom_values", "RescaleSlope is 0"),
        ("CT", changed(RescaleIntercept=None), "dicom_values", "RescaleIntercept is missing in 1 of 7 slices (file 4)"),
        ("CT", changed(RescaleType="ED"), "dicom_values", "RescaleType of 1 of 7 slices (file 4)"),
        ("CT", changed(PhotometricInterpretation="MONOCHROME1"), "dicom_values", "PhotometricInterpretation of 1 of 7 slices (file 4)"),
        ("CT", without("PixelRepresentation"), "dicom_values", "PixelRepresentation missing in 1 of 7 slices (file 4)"),
        ("CT", without("BitsStored"), "dicom_values", "BitsStored missing in 1 of 7 slices (file 4)"),
        ("CT", without("HighBit"), "dicom_values", "HighBit missing in 1 of 7 slices (file 4)"),
        ("CT", changed(PixelRepresentation=0), "dicom_pixels", "unsigned numbers of 16 bits, those of most other slices signed"),
        ("CT", changed(BitsStored=12, HighBit=11), "dicom_pixels", "of 12 bits, those of most other slices signed numbers of 16"),
        ("CT", changed(HighBit=14), "dicom_pixels", "the highest at 14, in 16 bits are not read (file 4)"),
        ("PT", changed(Units="CNTS"), "dicom_values", "differs from that of the rest (BQML, CNTS)"),
        ("PT", without("Units"), "dicom_values", "differs from that of the rest (BQML, none)"),
        ("CT", without("PixelSpacing"), "dicom_geometry_missing", "PixelSpacing missing or garbled in 1 of 7 slices (file 4)"),
        ("CT", without("ImageOrientationPatient"), "dicom_geometry_missing", "ImageOrientationPatient missing or garbled in 1 of 7"),
        ("CT", changed(PixelSpacing=[0.9, 0.9]), "dicom_matrix_varies", "those of file 4 are odd"),
        ("CT", changed(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "dicom_orientation_mixed", "those of file 4 are odd"),
        ("CT", changed(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "dicom_geometry_missing", "those of file 4 are odd"),
        ("CT", changed(FrameOfReferenceUID="1.2.3"), "dicom_geometry_missing", "2 frames of reference (those of file 4 are odd)"),
        ("CT", changed(Modality="OT"), "dicom_values", "Modality of 1 of 7 slices (file 4) differs from that of the rest"),
        ("CT", changed(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "dicom_values", "the kind of image) of 1 of 7 slices (file 4)"),
        ("CT", changed(PhotometricInterpretation="RGB"), "dicom_colour", "those of file 4 are odd"),
    ],
)  # fmt: skip
def test_one_slice_that_says_otherwise_is_named_and_no_other(
    tmp_path: Path, modality: str, change: Callable[[Dataset], None], code: str, says: str
) -> None:
    made = slices(modality=modality, **({"Units": "BQML"} if modality == "PT" else {}))
    change(made[ODD])
    found = faults_of(save(tmp_path / "in", made))
    assert any(fault.code == code and says in fault.message for fault in found), found
    assert {fault.file for fault in found} <= {None, "file 4"}
    assert not (tmp_path / "x.nii.gz").exists()


def test_bits_that_differ_between_slices_are_no_fault_where_the_values_are_the_same(tmp_path: Path) -> None:
    made = slices(stored=np.clip(voxels(), -1000, 2000))
    made[ODD].BitsStored, made[ODD].HighBit = 12, 11
    made[ODD + 1].PixelRepresentation = 0
    made[ODD + 1].PixelData = np.abs(np.frombuffer(made[ODD + 1].PixelData, np.int16)).tobytes()
    assert faults_of(save(tmp_path / "in", made)) == []


@pytest.mark.parametrize(("modality", "what"), [("CT", "not Hounsfield units"), ("PT", "not activity")])
def test_a_whole_series_without_rescale_is_refused_where_the_values_have_a_unit(tmp_path: Path, modality: str, what: str) -> None:
    made = slices(modality=modality)
    for ds in made:
        del ds.RescaleSlope, ds.RescaleIntercept
    [fault] = faults_of(save(tmp_path / "in", made))
    assert (fault.code, fault.severity, what in fault.message) == ("dicom_values", "error", True)
    assert faults_of(save(tmp_path / "mr" / "in", slices(modality="MR"))) == []


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"slope": [1, 1, 1, 0, 1, 1, 1]}, "RescaleSlope is 0"),
        ({"intercept": [-1024, -1024, -1024, None, -1024, -1024, -1024]}, "RescaleIntercept is missing in 1 of 7 slices"),
    ],
)
def test_frames_of_one_object_are_compared_like_slices(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    [fault] = faults_of(save(tmp_path / "in", [multiframe(slices(), per_frame=values)]))
    assert (fault.code, says in fault.message) == ("dicom_values", True)


def test_units_of_a_multi_frame_pet_are_found_in_its_frames(tmp_path: Path) -> None:
    whole = multiframe(slices(modality="PT"))
    whole.Modality = "PT"
    for number, frame in enumerate(whole.PerFrameFunctionalGroupsSequence):
        code, mapping = Dataset(), Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "Bq/ml", "UCUM", "Becquerels/milliliter"
        mapping.MeasurementUnitsCodeSequence = [code]
        frame.RealWorldValueMappingSequence = [mapping]
        if number == ODD:
            code.CodeValue = "{counts}"
    [fault] = faults_of(save(tmp_path / "in", [whole]))
    assert (fault.code, "(BQML, CNTS)" in fault.message) == ("dicom_values", True)
    whole.PerFrameFunctionalGroupsSequence[ODD].RealWorldValueMappingSequence[0].MeasurementUnitsCodeSequence[0].CodeValue = "Bq/ml"
    [series] = scanned(save(tmp_path / "in", [whole])).series
    assert units_of(series) == "BQML"
