"""Predictions from DICOM studies to DICOM SEG: the mask of the NIfTI in the place of the series, and nothing told of the patient."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pydicom
import pytest

from devtools.testbed.prediction import PLANS, TRAINER, job_dir
from devtools.testbed.stages import DATASET, LOW, save_stage
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dicom.geometry import grid_of
from nnunet_jobs.dicom.identity import Identity
from nnunet_jobs.dicom.labels import label_volume
from nnunet_jobs.prediction.model import selection_hash
from nnunet_jobs.steps.predict import run
from support.dicom_labels import CANARY, object_of, series_of, uid, write_series

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

LABELS = {"background": 0, "head": 1, "tail": 2}
OBLIQUE = (0.999679, 0.02533, 0.0, -0.0244148, 0.963561, -0.26637)
LARGEST = {"function": "remove_all_but_largest_component_from_segmentation", "labels_or_regions": [[1, 2]]}


@pytest.fixture
def home(workspace: Workspace) -> Workspace:
    """A model of one small stage, promoted to nothing but named ``m1``."""
    raw = workspace.raw_dataset(DATASET)
    raw.mkdir(parents=True)
    write_json(raw / "manifest.json", {"schema": 1, "cases": {}, "series": {"MRI": {"description": "^(small|T1post|HippoCrop)$"}}})
    root = workspace.model_root("m1") / DATASET
    files = save_stage(root, LOW, seed=1)
    write_card(workspace, files)
    return workspace


def write_card(workspace: Workspace, files: Any, *, postprocessing: Any = ()) -> None:
    root = workspace.model_root("m1") / DATASET
    selection = {
        "members": [{"trainer": TRAINER, "plans": PLANS, "folds": [0], "configuration": LOW}],
        "postprocessing": list(postprocessing),
    }
    card = {"schema": 1, "dataset": DATASET, "model": "m1", "selection": selection, "files": dict(files)}
    write_json(root / "model.json", {**card, "hash": selection_hash(selection, dict(files))})


def predict(workspace: Workspace, cases: Any, output: str = "out", **params: Any) -> dict[str, Any]:
    where = Path(workspace.output_roots[0]) / output
    asked = PredictParams(dataset=DATASET, cases=str(cases), output=str(where), model="m1", **params)
    return run(asked, StepContext(workspace=workspace, job=job_dir(workspace), cpus=2))


def studies(folder: Path, count: int = 2) -> list[list[Path]]:
    """Studies of bright blobs, in folders and files named after the patient, slices in a random order of names."""
    made = []
    for number in range(count):
        where = folder / f"Canary^Yellow {number}"
        paths = write_series(
            where, shape=(40, 36, 20), spacing=(1.1, 1.2, 2.0), orientation=OBLIQUE, seed=f"series {number}", study=f"study {number}"
        )
        made.append([path.rename(where / f"Canary {(7 * place) % 20:02d}.dcm") for place, path in enumerate(paths)])
    return made


def check_place(workspace: Workspace, paths: list[Path], case: str, output: str = "out") -> np.ndarray:
    """The SEG is the NIfTI's mask on the very voxels, read through the grid and by patient coordinates alone. Returns the mask."""
    folder = Path(workspace.output_roots[0]) / output
    image = nibabel.load(folder / f"{case}.nii.gz")
    found = np.asarray(image.dataobj)
    series, _ = series_of(paths)
    grid = grid_of(series)
    seg = object_of(folder / f"{case}.seg.dcm")
    np.testing.assert_array_equal(label_volume([seg], series, grid, None, LABELS, on_warning=lambda _: None), found)
    assert (folder / f"{case}.seg.dcm").stat().st_mode & 0o777 == 0o600
    ds = pydicom.dcmread(folder / f"{case}.seg.dcm")
    bits = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")[: ds.NumberOfFrames * ds.Rows * ds.Columns]
    shared = ds.SharedFunctionalGroupsSequence[0]
    across, down = np.split(np.asarray(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float), 2)
    spacing = np.asarray(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    to_voxel = np.linalg.inv(image.affine)
    back = np.zeros_like(found)
    for frame, pixels in zip(ds.PerFrameFunctionalGroupsSequence, bits.reshape(-1, ds.Rows, ds.Columns), strict=True):
        rows, columns = np.nonzero(pixels)
        origin = np.asarray(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        points = origin + columns[:, None] * across * spacing[1] + rows[:, None] * down * spacing[0]
        indices = (points * (-1, -1, 1)) @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        assert np.abs(indices - np.rint(indices)).max(initial=0) < 0.05
        back[tuple(np.rint(indices).astype(int).T)] = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    np.testing.assert_array_equal(back, found)
    return found


def case_of(workspace: Workspace, paths: list[Path]) -> str:
    return Identity(workspace.private).case(str(pydicom.dcmread(paths[0]).StudyInstanceUID))


def test_studies_are_predicted_and_written_back_onto_their_own_slices(home: Workspace, tmp_path: Path) -> None:
    made = studies(tmp_path / "incoming")
    write_series(tmp_path / "incoming" / "scout", seed="scout", study="study 0", SeriesDescription="not what the model was trained on")
    result = predict(home, tmp_path / "incoming", dicom_seg=True, segment_codes={"head": ["279336005", "SCT", "Head"]})
    assert (result["predicted"], result["failed"]) == (2, [])
    listed = read_json(Path(result["predictions"]))["cases"]
    for paths in made:
        case = case_of(home, paths)
        assert listed[case]["seg"] == f"{case}.seg.dcm"
        assert len(np.unique(check_place(home, paths, case))) > 1, "something must have been found for this to mean anything"
    ds = pydicom.dcmread(Path(result["output"]) / f"{case}.seg.dcm")
    assert ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Head"
    assert not [path for path in Path(result["output"]).rglob("*") if "converted" in path.name]

    before = {path.name: path.read_bytes() for path in Path(result["output"]).iterdir() if path.is_file()}
    again = predict(home, tmp_path / "incoming", dicom_seg=True, segment_codes={"head": ["279336005", "SCT", "Head"]})
    assert (again["predicted"], again["already_done"]) == (0, 2)
    after = {path.name: path.read_bytes() for path in Path(result["output"]).iterdir() if path.is_file()}
    assert {name for name in after if after[name] != before[name]} <= {"predictions.json"}


@pytest.mark.parametrize("name", ["12-T1post-05670", "13_HCropVolume"])
def test_a_real_series_makes_the_round_trip(home: Workspace, test_data: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(test_data / "dicom" / name, tmp_path / "incoming")
    paths = sorted((tmp_path / "incoming").glob("*.dcm"))
    write_card(home, read_json(home.model_root("m1") / DATASET / "model.json")["files"], postprocessing=[LARGEST])
    result = predict(home, tmp_path / "incoming", dicom_seg=True, mirroring=False)
    assert result["predicted"] == 1
    found = check_place(home, paths, case_of(home, paths))
    from skimage.measure import label

    assert label(found > 0, connectivity=3).max() == 1  # the postprocessed result is what is written


def test_a_seg_is_added_to_what_was_predicted_without_one_and_renewed_with_other_codes(home: Workspace, tmp_path: Path) -> None:
    [paths] = studies(tmp_path / "incoming", count=1)
    case = case_of(home, paths)
    predict(home, tmp_path / "incoming")
    out = Path(home.output_roots[0]) / "out"
    assert not list(out.glob("*.dcm"))
    first = (out / f"{case}.nii.gz").stat().st_mtime_ns
    result = predict(home, tmp_path / "incoming", dicom_seg=True)
    assert (result["predicted"], result["already_done"]) == (0, 1)
    check_place(home, paths, case)
    predict(home, tmp_path / "incoming", dicom_seg=True, segment_codes={"tail": ["1", "99TEST", "Tail"]})
    assert pydicom.dcmread(out / f"{case}.seg.dcm").SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tail"
    assert (out / f"{case}.nii.gz").stat().st_mtime_ns == first


def test_studies_that_cannot_be_predicted_are_named_and_the_others_go_on(home: Workspace, tmp_path: Path) -> None:
    good, gap, cut, double = studies(tmp_path / "incoming", count=4)
    gap[3].unlink()
    whole = cut[5].read_bytes()
    cut[5].write_bytes(whole[:-500])
    write_series(tmp_path / "incoming" / "more", shape=(40, 36, 20), seed="second series", study="study 3")
    result = predict(home, tmp_path / "incoming", dicom_seg=True)
    reasons = {item["case"]: item["reason"] for item in result["failed"]}
    assert set(reasons) == {case_of(home, paths) for paths in (gap, cut, double)}
    assert "channel 'MRI': 2 series match" in reasons[case_of(home, double)]
    assert "dicom_s" in reasons[case_of(home, gap)]
    check_place(home, good, case_of(home, good))
    result = predict(home, tmp_path / "incoming", series={"MRI": {"each": True}}, output="each")
    assert result["predicted"] == 3


def test_parts_share_the_studies_between_them(home: Workspace, tmp_path: Path) -> None:
    made = studies(tmp_path / "incoming", count=3)
    results = [predict(home, tmp_path / "incoming", part=part, parts=2, dicom_seg=True) for part in (0, 1)]
    assert [result["predicted"] for result in results] == [2, 1]
    for paths in made:
        check_place(home, paths, case_of(home, paths))


def test_dicom_seg_needs_dicom_and_rules_that_fit(home: Workspace, tmp_path: Path) -> None:
    (tmp_path / "nifti").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), tmp_path / "nifti" / "a_0000.nii.gz")
    with pytest.raises(ConfigError, match="dicom_seg=True"):
        predict(home, tmp_path / "nifti", dicom_seg=True)
    studies(tmp_path / "incoming", count=1)
    with pytest.raises(ConfigError, match="series:"):
        predict(home, tmp_path / "incoming", series={"T2": {}})
    with pytest.raises(ConfigError, match="not a label of the model"):
        predict(home, tmp_path / "incoming", dicom_seg=True, segment_codes={"liver": ["1", "99TEST", "Liver"]})
    with pytest.raises(DataError, match="no study"):
        predict(home, tmp_path / "incoming", series={"MRI": {"description": "another"}})


def test_fault_55_the_patient_is_in_the_seg_and_nowhere_else(home: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    good, gap = studies(tmp_path / "incoming")
    gap[3].unlink()
    (tmp_path / "incoming" / "Canary.dcm").write_bytes(bytes(128) + b"DICM" + b"Canary^Yellow" * 9)
    result = predict(home, tmp_path / "incoming", dicom_seg=True)
    out = Path(result["output"])
    seg = pydicom.dcmread(out / f"{case_of(home, good)}.seg.dcm")
    assert str(seg.PatientName) == CANARY["PatientName"]
    told = caplog.text + str(result) + "".join(f"{path} " for path in out.rglob("*"))
    told += "".join(path.read_text() for path in out.rglob("*.json"))
    job = Path(home.jobs)
    told += "".join(path.read_text(errors="replace") for path in job.rglob("*") if path.is_file())
    told += nibabel.load(out / f"{case_of(home, good)}.nii.gz").header["descrip"].tobytes().decode()
    secrets = [CANARY["PatientID"], CANARY["AccessionNumber"], "Canary", "Yellow", CANARY["PatientBirthDate"]]
    secrets += [uid("study 0"), uid("series 0", "series"), uid("series 0", 0)]
    for secret in secrets:
        assert secret not in told, secret
