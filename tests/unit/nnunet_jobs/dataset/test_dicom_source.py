"""Registering a tree of DICOM studies: cases by study, channels by rule, labels by reference, patients kept together, nothing twice."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel  # noqa: TID253
import numpy as np
import pytest

from devtools.testbed.data import context, register_dataset, write_nifti
from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.storage.withdrawals import WithdrawParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.splits import make_splits
from nnunet_jobs.dicom.geometry import grid_of
from nnunet_jobs.dicom.identity import Identity
from nnunet_jobs.dicom.series import scan
from nnunet_jobs.steps import withdraw
from support.dicom import SHAPE, save, slices, uid, voxels
from support.dicom_labels import write_seg_object

NAMES = {"background": 0, "tumour": 1}
DATASET = "Dataset004_Small"


def register(workspace: Workspace, source: Path, **params: Any) -> dict[str, Any]:
    return register_dataset(workspace, source, **{"label_names": NAMES, "channel_names": {"0": "CT"}, "holdout_fraction": 0.0, **params})


def study(root: Path, name: str, *, patient: str = "p", labelled: bool = True, series: str = "ct", **values: Any) -> Path:
    """One study's folder: a CT series and, if labelled, a SEG of a block in it."""
    made = slices(study=name, series=series, patient=patient, stored=voxels(seed=len(name) + ord(name[-1])), **values)
    folder = save(root / name / series, made)
    if labelled:
        write_seg_object(root / name / "seg.dcm", sorted(folder.iterdir()), {"tumour": block()})
    return root


def block() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[4:9, 3:12, 2:5] = True
    return mask


def case_of(workspace: Workspace, name: str) -> str:
    return Identity(workspace.private).case(uid(name))


def faults(error: pytest.ExceptionInfo[DataError]) -> list[tuple[str, str | None]]:
    return [(str(fault.code), fault.case) for fault in error.value.faults]


# --- one channel ------------------------------------------------------------------------------------------------------
def test_studies_become_cases_with_their_labels(tmp_path: Path, workspace: Workspace) -> None:
    source = tmp_path / "archive"
    for number in range(3):
        study(source, f"s{number}", patient=f"p{number}")
    study(source, "unlabelled", patient="p9", labelled=False)
    result = register(workspace, source)
    assert (result["train"], result["test"], result["already_done"]) == (3, 1, False)
    case = case_of(workspace, "s1")
    folder = Path(result["path"])
    image, label = (
        nibabel.load(folder / sub / name) for sub, name in (("imagesTr", f"{case}_0000.nii.gz"), ("labelsTr", f"{case}.nii.gz"))
    )
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels(seed=2 + ord("1")))
    np.testing.assert_array_equal(np.asarray(label.dataobj), block())
    np.testing.assert_allclose(image.affine, label.affine)
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [12.5, -30, -100, 1])
    assert (folder / "imagesTs" / f"{case_of(workspace, 'unlabelled')}_0000.nii.gz").exists()
    assert workspace.manifest(DATASET)["series"] == {}


def test_nothing_new_converts_nothing_and_what_left_is_forgotten(tmp_path: Path, workspace: Workspace) -> None:
    source = tmp_path / "archive"
    for number in range(3):
        study(source, f"s{number}", patient=f"p{number}")
    first = register(workspace, source)
    cache = Path(workspace.raw) / ".state" / "dicom" / DATASET
    before = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.nii.gz")}
    assert len(before) == 6
    assert cache.stat().st_mode & 0o777 == 0o700
    again = register(workspace, source)
    assert again == {**first, "added": 0, "already_done": True}
    assert {path.name: path.stat().st_mtime_ns for path in cache.glob("*.nii.gz")} == before
    study(source, "s3", patient="p3")
    shutil.rmtree(source / "s0")
    grown = register(workspace, source)
    assert (grown["added"], grown["train"]) == (1, 4)
    after = {path.name for path in cache.glob("*.nii.gz")}
    assert len(after & set(before)) == 4
    assert len(after) == 6


def test_growing_by_one_slice_is_another_series(tmp_path: Path, workspace: Workspace) -> None:
    source = study(tmp_path / "archive", "s0", labelled=False)
    made = slices(study="s0", series="ct", patient="p")
    study(source, "s1", patient="q")
    register(workspace, source)
    made[2].RescaleIntercept = -3
    save(source / "s0" / "ct", made)
    second = register(workspace, source)
    assert (second["added"], second["changed"]) == (0, 1)


def test_auto_finds_dicom_only_where_nothing_else_fits(tmp_path: Path, workspace: Workspace) -> None:
    source = study(tmp_path / "archive", "s0")
    assert register(workspace, source)["train"] == 1
    (source / "images").mkdir()
    (source / "labels").mkdir()
    with pytest.raises(DataError, match="no_cases"):
        register(workspace, source, dataset_id=5, name="Folders")
    assert register(workspace, source, dataset_id=6, name="Dicom", layout="dicom")["train"] == 1


def test_labels_may_be_nifti_files_named_by_case(tmp_path: Path, workspace: Workspace) -> None:
    source = study(tmp_path / "archive", "s0")
    first = register(workspace, source)
    case = case_of(workspace, "s0")
    image = nibabel.load(Path(first["path"]) / "imagesTr" / f"{case}_0000.nii.gz")
    mine = np.zeros(SHAPE, np.uint8)
    mine[1, 1, 1] = 1
    write_nifti(source / "labels" / f"{case}.nii.gz", mine, affine=image.affine)
    second = register(workspace, source)
    assert second["changed"] == 1
    np.testing.assert_array_equal(np.asarray(nibabel.load(Path(second["path"]) / "labelsTr" / f"{case}.nii.gz").dataobj), mine)


def test_each_matching_series_may_be_a_case_and_a_patient_stays_together(tmp_path: Path, workspace: Workspace) -> None:
    source = tmp_path / "archive"
    for series in ("a", "b"):
        study(source, "s0", series=series, labelled=False)
        write_seg_object(source / "s0" / f"{series}.seg.dcm", sorted((source / "s0" / series).iterdir()), {"tumour": block()})
    result = register(workspace, source, series={"CT": {"each": True}})
    assert result["train"] == 2
    entries = workspace.manifest(DATASET)["cases"].values()
    assert len({entry["group"] for entry in entries}) == 1
    assert workspace.manifest(DATASET)["series"] == {"CT": {"each": True}}


def test_studies_of_one_patient_are_never_on_both_sides(tmp_path: Path, workspace: Workspace) -> None:
    source = tmp_path / "archive"
    for number in range(12):
        patient = f"p{number // 2}"
        study(source, f"s{number}", patient=patient, **({"IssuerOfPatientID": "here"} if number % 2 else {}))
    register(workspace, source, holdout_fraction=0.3)
    cases = workspace.manifest(DATASET)["cases"]
    mapping = Identity(workspace.private).mapping(DATASET)
    sides: dict[str, set[str]] = {}
    for case, entry in cases.items():
        sides.setdefault(mapping[case].patient.partition("^^^")[0], set()).add(entry["split"])
    assert len(sides) == 6
    assert all(len(side) == 1 for side in sides.values())
    assert {next(iter(side)) for side in sides.values()} == {"train", "holdout"}
    groups = {case: entry["group"] for case, entry in cases.items() if entry["split"] == "train"}
    splits, _ = make_splits(groups, folds=2, seed=1)
    for fold in splits:
        train, val = ({mapping[case].patient.partition("^^^")[0] for case in fold[part]} for part in ("train", "val"))
        assert train
        assert val
        assert not train & val


@pytest.mark.parametrize("by", ["cases", "groups"])
def test_a_withdrawn_study_that_is_still_in_the_archive_is_not_converted_again(tmp_path: Path, workspace: Workspace, by: str) -> None:
    source = tmp_path / "archive"
    for number in range(3):
        study(source, f"s{number}", patient=f"p{number}")
    register(workspace, source)
    case = case_of(workspace, "s1")
    cache = Path(workspace.raw) / ".state" / "dicom" / DATASET
    what = case if by == "cases" else workspace.manifest(DATASET)["cases"][case]["group"]
    withdraw.run(WithdrawParams(dataset=DATASET, **{by: [what]}), context(workspace, "withdraw"))
    again = register(workspace, source)
    assert (again["train"], again["withdrawn"]) == (2, 1)
    assert len(list(cache.glob("i*.nii.gz"))) == 2
    assert case not in Identity(workspace.private).mapping(DATASET)


# --- several channels -------------------------------------------------------------------------------------------------
RULES = {
    "T1": {"modality": "MR", "description": "(?i)t1"},
    "T2": {"modality": "MR", "tags": {"EchoTime": [80, 90]}},
}
CHANNELS = {"0": "T1", "1": "T2"}


def two_channels(root: Path, name: str, **t2: Any) -> Path:
    for series, echo in (("t1_ax", 12), ("other", 90)):
        stored = voxels(seed=echo)
        more = t2 if series == "other" else {}
        save(root / name / series, slices(study=name, series=series, modality="MR", EchoTime=echo, **{"stored": stored, **more}))
    write_seg_object(root / name / "seg.dcm", sorted((root / name / "other").iterdir()), {"tumour": block()})
    return root


def test_channels_are_chosen_by_rule(tmp_path: Path, workspace: Workspace) -> None:
    source = two_channels(tmp_path / "archive", "s0")
    save(source / "s0" / "ct", slices(study="s0", series="t1 but CT"))
    save(source / "s0" / "loc", slices(study="s0", series="t1 localizer", modality="MR", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    result = register(workspace, source, series=RULES, channel_names=CHANNELS)
    case, folder = case_of(workspace, "s0"), Path(result["path"]) / "imagesTr"
    for channel, seed in enumerate((12, 90)):
        np.testing.assert_array_equal(np.asarray(nibabel.load(folder / f"{case}_{channel:04d}.nii.gz").dataobj), voxels(seed=seed))
    assert result["train"] == 1
    assert Identity(workspace.private).mapping(DATASET)[case].series[:2] == (uid("s0", "t1_ax"), uid("s0", "other"))


def test_none_and_several_matches_are_faults_without_a_word_from_the_headers(tmp_path: Path, workspace: Workspace) -> None:
    source = two_channels(tmp_path / "archive", "several")
    save(source / "several" / "again", slices(study="several", series="t1 CANARY", modality="MR", EchoTime=13))
    save(source / "none" / "t1", slices(study="none", series="t1 CANARY", modality="MR", EchoTime=12))
    with pytest.raises(DataError) as error:
        register(workspace, source, series=RULES, channel_names=CHANNELS)
    assert sorted(faults(error)) == sorted(
        [
            ("dicom_series_ambiguous", case_of(workspace, "several")),
            ("dicom_series_missing", case_of(workspace, "none")),
        ]
    )
    text = str(error.value)
    assert "channel 'T1': 2 series match (MR, 7 slices, 24 x 20, SeriesNumber 4, EchoTime 12, SliceThickness 2.5; " in text
    assert "channel 'T2': none of the study's 1 image series matches (MR, 7 slices" in text
    assert "CANARY" not in text


def test_channels_on_different_grids_are_a_fault(tmp_path: Path, workspace: Workspace) -> None:
    source = two_channels(tmp_path / "archive", "s0", spacing=(0.7, 0.8, 3.0))
    with pytest.raises(DataError) as error:
        register(workspace, source, series=RULES, channel_names=CHANNELS)
    assert {case for _, case in faults(error)} == {case_of(workspace, "s0")}
    assert "spacing_mismatch" in {code for code, _ in faults(error)}


def test_fault_59_all_faults_of_all_studies_come_in_one_report(tmp_path: Path, workspace: Workspace) -> None:
    source = tmp_path / "archive"
    for number in range(3):
        study(source, f"s{number}", patient=f"p{number}")
    (source / "s0" / "ct" / "003.dcm").unlink()
    cut = source / "s1" / "ct" / "002.dcm"
    cut.write_bytes(cut.read_bytes()[:-100])
    (source / "s2" / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 50)
    with pytest.raises(DataError) as error:
        register(workspace, source)
    assert sorted(faults(error), key=str) == sorted(
        [
            ("dicom_slice_missing", case_of(workspace, "s0")),
            ("dicom_pixels", case_of(workspace, "s1")),
            ("dicom_unreadable", case_of(workspace, "s2")),  # whose label object lies in the same folder
        ],
        key=str,
    )
    assert not (Path(workspace.raw) / DATASET).exists()
    note = json.loads((workspace.private / f"{DATASET}.files.json").read_text())
    [number] = [fault.file for fault in error.value.faults if fault.code == "dicom_unreadable"]
    assert note[str(number).removeprefix("file ")] == str(source / "s2" / "broken.dcm")


def test_labels_that_describe_another_series_are_named(tmp_path: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    source = study(tmp_path / "archive", "s0", series="mr", modality="MR")
    study(source, "s1", patient="q")
    save(source / "s1" / "mr", slices(study="s1", series="mr", patient="q", modality="MR"))
    with pytest.raises(DataError) as error:
        register(workspace, source, series={"MR": {"modality": "MR"}}, channel_names=None)
    assert faults(error) == [("label_reference", case_of(workspace, "s1"))]
    assert "1 of 1 SEG and RTSTRUCT series (file 9) describe another series" in str(error.value)
    write_seg_object(source / "s1" / "mr.dcm", sorted((source / "s1" / "mr").iterdir()), {"tumour": block()})
    with caplog.at_level(logging.WARNING, logger="nnunet_jobs"):
        result = register(workspace, source, series={"MR": {"modality": "MR"}}, channel_names=None)
    assert (result["train"], result["test"]) == (2, 0)
    [other] = [record.getMessage() for record in caplog.records if "label_reference" in record.getMessage()]
    assert other.startswith(f"label_reference [{case_of(workspace, 's1')}]: 1 of 2 SEG and RTSTRUCT series")


# --- fields -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"series": {"A": {"modalty": "CT"}}}, "unknown key 'modalty'"),
        ({"series": {"A": {"description": "("}}}, "not a regular expression"),
        ({"series": {"A": {}, "B": {}}}, "channel_names must say the order"),
        ({"series": {"A": {}}, "channel_names": {"0": "B"}}, "give each channel a rule"),
        ({"series": {"A": {"tags": {"echo time": 5}}}}, "not a DICOM keyword"),
        ({"series": {"A": {"each": True}, "B": {}}, "channel_names": {"0": "A", "1": "B"}}, "one channel"),
    ],
)
def test_wrong_rules_are_named_before_anything_runs(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RegisterParams(dataset_id=4, name="Small", source="/x", **fields)


def test_tables_are_asked_for_before_hours_of_work(tmp_path: Path, workspace: Workspace) -> None:
    source = study(tmp_path / "archive", "s0")
    with pytest.raises(ConfigError, match="label_names is missing"):
        register_dataset(workspace, source, channel_names={"0": "CT"})
    with pytest.raises(ConfigError, match="channel_names is missing"):
        register_dataset(workspace, source, label_names=NAMES)
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="holds no DICOM file"):
        register(workspace, tmp_path / "none", layout="dicom")


def test_the_real_series_become_two_patients(test_data: Path, tmp_path: Path) -> None:
    workspace = Workspace.below(tmp_path / "work", input_roots=(str(test_data),))
    found = scan((test_data / "dicom").resolve(), beat=lambda: None, threads=2)
    assert sorted(grid_of(series).shape for series in found.series) == [(35, 51, 32), (36, 48, 35), (512, 512, 22)]
    with pytest.raises(DataError, match="none of 3 cases has a label"):
        register(workspace, test_data / "dicom", series={"MR": {"modality": "MR", "each": True}}, channel_names={"0": "MR"})
    people = Identity(workspace.private).mapping(DATASET).values()
    assert sorted(person.patient for person in people) == ["PGBM-002", "PGBM-002", "PGBM-006"]
    assert len({person.group for person in people}) == 2
