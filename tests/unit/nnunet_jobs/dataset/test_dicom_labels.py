"""Which case a label object belongs to, with every reference that may be missing; and no label object that vanishes silently."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence

from devtools.testbed.data import register_dataset, write_nifti
from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dicom import label_task
from nnunet_jobs.dicom import series as scan_of_series
from nnunet_jobs.dicom.geometry import grid_of
from nnunet_jobs.dicom.identity import Identity
from support.dicom import SHAPE, save, scanned, slices, uid, voxels
from support.dicom_labels import contours_of, write_rtstruct, write_seg_object

NAMES = {"background": 0, "tumour": 1, "edema": 2}
DATASET = "Dataset004_Small"
TWO = {"T1": {"description": "T1"}, "T2": {"description": "T2"}}
CHANNELS = {"0": "T1", "1": "T2"}


def register(workspace: Workspace, source: Path, **params: Any) -> dict[str, Any]:
    return register_dataset(workspace, source, **{"label_names": NAMES, "channel_names": {"0": "CT"}, "holdout_fraction": 0.0, **params})


def label_of(workspace: Workspace, study: str, series: str = "") -> np.ndarray:
    case = Identity(workspace.private).case(uid(study), uid(study, series) if series else "")
    return np.asarray(nibabel.load(Path(workspace.raw) / DATASET / "labelsTr" / f"{case}.nii.gz").dataobj)


def block(columns: slice = slice(4, 9)) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[columns, 3:12, 2:5] = True
    return mask


def seg(root: Path, folder: Path, name: str = "seg.dcm", masks: dict[str, np.ndarray] | None = None) -> Path:
    write_seg_object(root / name, sorted(folder.iterdir()), masks or {"tumour": block()})
    return root / name


def rtstruct(root: Path, folder: Path, name: str = "rt.dcm") -> Path:
    [series] = scanned(folder).series
    grid = grid_of(series)
    write_rtstruct(root / name, series, grid, {"tumour": contours_of(block(), grid)})
    return root / name


def edit(path: Path, change: Callable[[Dataset], None]) -> None:
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(path)


def without_contour_images(ds: Dataset) -> None:
    for roi in ds.ROIContourSequence:
        for contour in roi.ContourSequence:
            if "ContourImageSequence" in contour:
                del contour.ContourImageSequence


def drop_studies(ds: Dataset) -> None:
    """RTReferencedStudySequence is of type 3."""
    del ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence


def drop_all(ds: Dataset) -> None:
    """So are ReferencedFrameOfReferenceSequence and ContourImageSequence."""
    del ds.ReferencedFrameOfReferenceSequence
    without_contour_images(ds)


def drop_frames(ds: Dataset) -> None:
    """Images are all that is left; the contours are in no frame of reference."""
    del ds.ReferencedFrameOfReferenceSequence
    for item in ds.StructureSetROISequence:
        del item.ReferencedFrameOfReferenceUID


def drop_series(ds: Dataset) -> None:
    del ds.ReferencedSeriesSequence


def drop_images(ds: Dataset) -> None:
    drop_series(ds)
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    if "SourceImageSequence" in ds:
        del ds.SourceImageSequence


def drop_frame_of_reference(ds: Dataset) -> None:
    drop_series(ds)
    del ds.FrameOfReferenceUID


def other_modality(ds: Dataset) -> None:
    ds.Modality = "OT"


def no_patient(ds: Dataset) -> None:
    ds.PatientID = ""


def study_of_its_own(ds: Dataset) -> None:
    ds.StudyInstanceUID = "1.2.3.4"


@pytest.mark.parametrize("issuer", [{}, {"IssuerOfPatientID": "HOSPITAL"}], ids=["", "issuer"])
@pytest.mark.parametrize(
    "change",
    [drop_studies, drop_all, drop_frames, other_modality, no_patient, study_of_its_own],
)
def test_an_rtstruct_finds_its_series_by_what_it_says(
    tmp_path: Path, workspace: Workspace, change: Callable[[Dataset], None], issuer: dict[str, str]
) -> None:
    folder = save(tmp_path / "in" / "ct", slices(study="s0", **issuer))
    path = rtstruct(tmp_path / "in", folder)
    edit(path, lambda ds: (setattr(ds, "PatientID", "patient"), change(ds))[1])
    assert register(workspace, tmp_path / "in")["train"] == 1
    np.testing.assert_array_equal(label_of(workspace, "s0"), block())


@pytest.mark.parametrize(
    "change",
    [drop_series, drop_images, drop_frame_of_reference, other_modality, no_patient, study_of_its_own],
)
def test_a_seg_finds_its_series_by_what_it_says(tmp_path: Path, workspace: Workspace, change: Callable[[Dataset], None]) -> None:
    folder = save(tmp_path / "in" / "ct", slices(study="s0"))
    edit(seg(tmp_path / "in", folder), change)
    assert register(workspace, tmp_path / "in")["train"] == 1
    np.testing.assert_array_equal(label_of(workspace, "s0"), block())


def test_a_frame_of_reference_that_two_studies_share_goes_to_the_objects_own_study(tmp_path: Path, workspace: Workspace) -> None:
    for name in ("s0", "s1"):
        save(tmp_path / "in" / name, slices(study=name, FrameOfReferenceUID="1.2.3"))
    edit(seg(tmp_path / "in", tmp_path / "in" / "s1"), drop_images)
    assert register(workspace, tmp_path / "in")["train"] == 1
    np.testing.assert_array_equal(label_of(workspace, "s1"), block())


def test_a_frame_of_reference_that_fits_several_cases_is_a_fault(tmp_path: Path, workspace: Workspace) -> None:
    for name in ("a", "b"):
        save(tmp_path / "in" / name, slices(study="s0", series=name))
    edit(seg(tmp_path / "in", tmp_path / "in" / "a"), drop_images)
    with pytest.raises(DataError, match="names a frame of reference only, which 2 cases have") as error:
        register(workspace, tmp_path / "in", series={"CT": {"each": True}})
    assert {str(fault.code) for fault in error.value.faults} == {"label_reference"}


# --- several channels -------------------------------------------------------------------------------------------------
def two_channels(root: Path, *, origin: tuple[float, float, float] = (-12.5, 30.0, -100.0)) -> Path:
    t1 = save(root / "T1", slices(study="s0", series="T1", modality="MR"))
    t2 = save(root / "T2", slices(study="s0", series="T2", modality="MR", stored=voxels(seed=2), origin=origin))
    seg(root, t1, "first.dcm", {"tumour": block()})
    seg(root, t2, "second.dcm", {"edema": block(slice(12, 15))})
    return root


def test_labels_on_both_channels_of_one_grid_are_all_painted(tmp_path: Path, workspace: Workspace) -> None:
    register(workspace, two_channels(tmp_path / "in"), series=TWO, channel_names=CHANNELS)
    np.testing.assert_array_equal(label_of(workspace, "s0"), block() + 2 * block(slice(12, 15)))


def test_a_label_on_the_second_channel_alone_is_painted(tmp_path: Path, workspace: Workspace) -> None:
    source = two_channels(tmp_path / "in")
    (source / "first.dcm").unlink()
    register(workspace, source, series=TWO, channel_names=CHANNELS)
    np.testing.assert_array_equal(label_of(workspace, "s0"), 2 * block(slice(12, 15)))


def test_overlap_between_the_labels_of_two_channels_is_a_fault(tmp_path: Path, workspace: Workspace) -> None:
    source = two_channels(tmp_path / "in")
    seg(source, source / "T2", "second.dcm", {"edema": block(slice(7, 15))})
    with pytest.raises(DataError, match="overlap in"):
        register(workspace, source, series=TWO, channel_names=CHANNELS)
    seg(source, source / "T2", "second.dcm", {"tumour": block(slice(12, 15))})
    with pytest.raises(DataError, match="has a segment of this name too"):
        register(workspace, source, series=TWO, channel_names=CHANNELS)


def test_labels_on_channels_of_two_grids_are_refused(tmp_path: Path, workspace: Workspace) -> None:
    source = two_channels(tmp_path / "in", origin=(-12.5, 30.0, -60.0))
    with pytest.raises(DataError, match="describe channels 0 and 1, which lie on different grids") as error:
        register(workspace, source, series=TWO, channel_names=CHANNELS)
    assert [str(fault.code) for fault in error.value.faults] == ["affine_mismatch"]


# --- how big they may be ----------------------------------------------------------------------------------------------
def test_what_reading_may_take_follows_the_size_of_the_file(tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Structure sets of 80 MiB are ordinary. This one has 5, beside a limit that would be enough for none of that size."""
    monkeypatch.setattr(label_task, "_LEAST_MIB", 32)
    monkeypatch.setattr(scan_of_series, "_HEADER_MIB", 32)
    folder = save(tmp_path / "in" / "ct", slices(study="s0"))
    path = rtstruct(tmp_path / "in", folder)

    def often(ds: Dataset) -> None:
        roi = ds.ROIContourSequence[0]
        for contour in roi.ContourSequence:
            contour.ContourData = [f"{float(value):.12f}"[:16] for value in contour.ContourData]
        inside = DicomBytesIO()
        inside.is_implicit_VR, inside.is_little_endian = True, True
        write_sequence(inside, roi["ContourSequence"], ["iso8859"])
        once = inside.getvalue()
        roi["ContourSequence"] = DataElement(roi["ContourSequence"].tag, "UN", once * ((5 << 20) // len(once)))

    edit(path, often)
    assert path.stat().st_size > 4 << 20
    assert register(workspace, tmp_path / "in")["train"] == 1
    np.testing.assert_array_equal(label_of(workspace, "s0"), block())


# --- nothing vanishes -------------------------------------------------------------------------------------------------
def surface(ds: Dataset) -> None:
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.5"
    for keyword in ("Rows", "Columns", "PixelData", "PerFrameFunctionalGroupsSequence"):
        delattr(ds, keyword)


def screenshot(ds: Dataset) -> None:
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"


def elsewhere(ds: Dataset) -> None:
    if "SourceImageSequence" in ds:
        del ds.SourceImageSequence
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3.4"
    for item in ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence:
        item.ReferencedSOPInstanceUID = "1.2.3.4.5"
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3.4.5"


def nowhere(ds: Dataset) -> None:
    drop_images(ds)
    del ds.FrameOfReferenceUID


def elsewhere_in_a_study_of_its_own(ds: Dataset) -> None:
    elsewhere(ds)
    study_of_its_own(ds)


def without_matrix(ds: Dataset) -> None:
    del ds.Rows


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (surface, "label_object", "is of a kind (SOP class) that is not read"),
        (screenshot, "label_object", "is of a kind (SOP class) that is not read"),
        (elsewhere, "label_reference", "(file 1) describe another series"),
        (nowhere, "label_reference", "(file 1) say neither which series"),
        (elsewhere_in_a_study_of_its_own, "label_reference", "(file 1) describe another series"),
        (without_matrix, "dicom_unreadable", "has no Rows or no Columns"),
    ],
)
def test_a_case_whose_only_label_object_is_unused_is_no_sound_case(
    tmp_path: Path, workspace: Workspace, change: Callable[[Dataset], None], code: str, says: str
) -> None:
    folder = save(tmp_path / "in" / "ct", slices(study="s0"))
    path = seg(tmp_path / "in", folder)
    edit(path, change)
    with pytest.raises(DataError) as error:
        register(workspace, tmp_path / "in")
    assert [(str(fault.code), says in fault.message) for fault in error.value.faults] == [(code, True)], error.value
    note = Identity(workspace.private).folder / f"{DATASET}.files.json"
    assert code == "label_object" or str(path) in note.read_text()


def test_a_nifti_label_stands_in_for_an_object_that_is_unused(tmp_path: Path, workspace: Workspace) -> None:
    folder = save(tmp_path / "in" / "ct", slices(study="s0"))
    edit(seg(tmp_path / "in", folder), elsewhere)
    case = Identity(workspace.private).case(uid("s0"))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid_of(scanned(folder).series[0]).affine
    write_nifti(tmp_path / "in" / "labels" / f"{case}.nii.gz", block().astype(np.uint8), affine=affine)
    assert register(workspace, tmp_path / "in")["train"] == 1


def test_an_object_of_another_patient_is_refused_across_studies_too(tmp_path: Path, workspace: Workspace) -> None:
    folder = save(tmp_path / "in" / "ct", slices(study="s0"))

    def strange(ds: Dataset) -> None:
        study_of_its_own(ds)
        ds.PatientID = "somebody else"

    edit(seg(tmp_path / "in", folder), strange)
    with pytest.raises(DataError, match="names another PatientID") as error:
        register(workspace, tmp_path / "in")
    assert [str(fault.code) for fault in error.value.faults] == ["dicom_patient"]


def test_the_odd_file_of_a_study_of_two_patients_is_named_and_not_the_others(tmp_path: Path) -> None:
    made = slices(study="s0")
    made[0].PatientID = "somebody else"
    [fault] = scanned(save(tmp_path, made)).faults
    assert (fault.code, fault.file) == ("dicom_patient", "file 1")


def test_two_issuers_are_two_patients_and_a_missing_one_is_none(tmp_path: Path) -> None:
    made = slices(study="s0", IssuerOfPatientID="A")
    del made[2].IssuerOfPatientID
    assert scanned(save(tmp_path, made)).faults == []
    made[2].IssuerOfPatientID = "B"
    [fault] = scanned(save(tmp_path, made)).faults
    assert (fault.code, fault.file) == ("dicom_patient", "file 3")


# --- PET ---------------------------------------------------------------------------------------------------------------
def test_pet_of_several_units_is_refused_and_of_one_other_unit_warned_of(
    tmp_path: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    for number, unit in enumerate(("BQML", "BQML", "CNTS")):
        folder = save(tmp_path / "in" / f"s{number}" / "pt", slices(study=f"s{number}", modality="PT", Units=unit))
        seg(tmp_path / "in" / f"s{number}", folder)
    with pytest.raises(DataError, match="its PET has the Units CNTS, that of other cases BQML") as error:
        register(workspace, tmp_path / "in", channel_names={"0": "PET"})
    assert [fault.case for fault in error.value.faults] == [Identity(workspace.private).case(uid("s2"))]
    for number in range(3):
        for path in (tmp_path / "in" / f"s{number}" / "pt").iterdir():
            edit(path, lambda ds: setattr(ds, "Units", "CNTS"))
    with caplog.at_level(logging.WARNING, logger="nnunet_jobs"):
        assert register(workspace, tmp_path / "in", channel_names={"0": "PET"})["train"] == 3
    assert sum("PET of 3 cases has the Units CNTS" in record.getMessage() for record in caplog.records) == 1
