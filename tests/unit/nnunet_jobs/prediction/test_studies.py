"""Which series of which study become a case, for models of several channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pydicom
import pytest

from devtools.testbed.prediction import job_dir
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dicom.mark import holds_dicom
from nnunet_jobs.prediction.studies import find_studies, series_rules
from support.dicom import save, slices
from support.dicom_labels import write_seg_object, write_series

CHANNELS = {"0": "T1", "1": "T2"}
RULES = {"T2": {"description": "t2"}, "T1": {"description": "t1"}}


@pytest.fixture
def context(workspace: Workspace) -> StepContext:
    return StepContext(workspace=workspace, job=job_dir(workspace), cpus=2)


def test_channels_come_in_the_models_order_and_lie_on_one_grid(context: StepContext, tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", seed="a", study="1", SeriesDescription="t2 tse")
    first = write_series(tmp_path / "in" / "b", seed="b", study="1", SeriesDescription="t1 mprage")
    write_series(tmp_path / "in" / "c", seed="c", study="1", SeriesDescription="scout")
    write_series(tmp_path / "in" / "d", seed="d", study="2", SeriesDescription="t1")
    write_series(tmp_path / "in" / "e", seed="e", study="3", SeriesDescription="t1")
    write_series(tmp_path / "in" / "f", seed="f", study="3", SeriesDescription="t2", spacing=(0.8, 0.9, 2.0))
    write_series(tmp_path / "in" / "g", seed="g", study="4", SeriesDescription="thorax")
    (tmp_path / "in" / "scan_0000.nii.gz").write_bytes(b"an image among DICOM studies")
    images = tmp_path / "images"
    images.mkdir()
    found = find_studies(tmp_path / "in", rules=series_rules(RULES, CHANNELS), dataset="Dataset001_A", images=images, context=context)
    [case] = found.by_case
    assert [series.description for series in found.by_case[case].channels] == ["t1 mprage", "t2 tse"]
    problems = sorted(str(item.problem) for item in found.incoming.cases if item.problem)
    assert [problem.split(";")[0] for problem in problems] == [
        "affine_mismatch: its channels lie on different grids",
        "dicom_series_missing: channel 'T2': none of the study's 1 image series matches (MR, 6 slices, 12 x 10, SeriesNumber 3, "
        "SliceThickness 2.5)",
    ]
    left_out = {item.name.split()[0]: (item.name, item.reason) for item in found.incoming.not_predicted}
    assert left_out.keys() == {"1", "study", "3"}
    assert left_out["1"][1].startswith("are not DICOM files, in a folder of DICOM studies")
    assert left_out["study"][1] == "has no series that the rules of 'series' choose"
    [ready] = found.convert([item for item in found.incoming.cases if item.case == case], context)
    assert [path.name for path in ready.images] == [f"{case}_0000.nii.gz", f"{case}_0001.nii.gz"]
    slices = np.stack([pydicom.dcmread(path).pixel_array.T for path in first], axis=-1)
    np.testing.assert_array_equal(np.asarray(nibabel.load(ready.images[0]).dataobj), slices)


def test_a_folder_is_known_for_dicom_by_its_files_and_not_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "case.dcm").write_text("no DICOM")
    assert not holds_dicom(tmp_path)
    [path, *_] = write_series(tmp_path / "b", shape=(4, 4, 1))
    path.rename(path.with_name("IM0001"))
    assert holds_dicom(tmp_path)


def found_in(folder: Path, context: StepContext, images: Path, rules: dict[str, Any], **options: Any) -> dict[str, str | None]:
    """The studies of a folder: case to the reason why it cannot be predicted."""
    images.mkdir(exist_ok=True)
    rules_of = series_rules(rules, {str(number): name for number, name in enumerate(rules)})
    found = find_studies(folder, rules=rules_of, dataset="Dataset001_A", images=images, context=context, **options)
    return {case.case: case.problem for case in found.incoming.cases}


def test_what_a_dicom_seg_needs_is_named_before_anything_is_predicted(context: StepContext, tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", seed="a", study="1", FrameOfReferenceUID="")
    write_series(tmp_path / "in" / "b", seed="b", study="2")
    plain = found_in(tmp_path / "in", context, tmp_path / "images", {"MRI": {}})
    assert set(plain.values()) == {None}
    wanted = found_in(tmp_path / "in", context, tmp_path / "images", {"MRI": {}}, as_seg=True)
    assert sorted(str(reason).partition(",")[0] for reason in wanted.values()) == [
        "None",
        "dicom_geometry_missing: a DICOM SEG needs FrameOfReferenceUID",
    ]


def test_label_objects_of_any_kind_are_no_matter_of_a_prediction(context: StepContext, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in" / "a", seed="a", study="1")
    other = write_series(tmp_path / "other", seed="b", study="1", SeriesDescription="not chosen")
    for number, images in enumerate((paths, other)):
        write_seg_object(tmp_path / "in" / f"{number}.dcm", images, {"x": np.ones((12, 10, 6), bool)})
    alone = pydicom.dcmread(tmp_path / "in" / "1.dcm")
    alone.StudyInstanceUID, alone.SOPInstanceUID = "1.2.3", "1.2.3.4"
    alone.save_as(tmp_path / "in" / "alone.dcm")
    assert list(found_in(tmp_path / "in", context, tmp_path / "images", {"MRI": {}}).values()) == [None]


@pytest.mark.parametrize("each", [False, True])
def test_a_study_with_a_file_that_cannot_be_read_is_not_predicted_without_it(context: StepContext, tmp_path: Path, each: bool) -> None:
    """It may be the last slice of one of its series."""
    paths = write_series(tmp_path / "in" / "a", seed="a", study="1")
    paths[-1].write_bytes(b"")
    write_series(tmp_path / "in" / "b", seed="b", study="2")
    found = found_in(tmp_path / "in", context, tmp_path / "images", {"MRI": {"each": each}})
    [reason] = [reason for reason in found.values() if reason]
    assert reason.startswith("dicom_unreadable: is named like a DICOM file but is empty")
    assert len(found) == 2
    assert str(paths[-1]) in (context.workspace.private / "Dataset001_A.predicted.files.json").read_text()


def test_pet_in_other_units_than_the_models_is_not_predicted(context: StepContext, tmp_path: Path) -> None:
    raw = context.workspace.raw_dataset("Dataset001_A")
    raw.mkdir(parents=True)
    write_json(raw / "manifest.json", {"units": {"PET": "BQML"}})
    for number, units in enumerate(("BQML", "CNTS")):
        save(tmp_path / "in" / units, slices(study=str(number), modality="PT", Units=units))
    found = found_in(tmp_path / "in", context, tmp_path / "images", {"PET": {}})
    assert sorted(map(str, found.values())) == [
        "None",
        "dicom_values: channel 'PET': its PET has the Units CNTS, that of the model's dataset BQML; export it in the same units",
    ]
