"""Real label maps as SEG and RTSTRUCT on real series: what is read back is the map, also flipped and oblique."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pytest

from devtools.testbed.data import register_dataset
from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dicom.identity import Identity
from nnunet_jobs.dicom.labels import label_volume
from support.dicom_labels import contours_of, series_of, write_rtstruct, write_seg_object, write_series

SERIES = ("12-T1post-05670", "13_HCropVolume", "14_HCropVolume")
LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}


def fitted(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A label map moved into a volume of another shape: enlarged in plane where there is room, off the centre, cut where it is larger."""
    zoom = max(1, min(shape[0] // label.shape[0], shape[1] // label.shape[1]) // 2)
    label = label.repeat(zoom, axis=0).repeat(zoom, axis=1)
    volume = np.zeros(shape, np.uint8)
    size = tuple(min(pair) for pair in zip(label.shape, shape, strict=True))
    start = tuple((whole - part) // 3 for whole, part in zip(shape, size, strict=True))
    place = tuple(slice(first, first + part) for first, part in zip(start, size, strict=True))
    volume[place] = label[tuple(slice(0, part) for part in size)]
    return volume


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("name", SERIES)
def test_a_hippocampus_map_comes_back_from_seg_and_rtstruct(
    test_data: Path, hippocampus: Path, tmp_path: Path, name: str, flipped: bool
) -> None:
    paths = sorted((test_data / "dicom" / name).glob("*.dcm"))
    series, grid = series_of(paths, flipped=flipped)
    label = fitted(np.asarray(nibabel.load(hippocampus / "labelsTr" / "hippocampus_190.nii.gz").dataobj, dtype=np.uint8), grid.shape)
    assert all(np.count_nonzero(label == value) > 200 for value in (1, 2))
    by_name = {label_name: label == value for label_name, value in LABELS.items() if value}
    in_order = [instance.path for instance in series.instances]
    seg = write_seg_object(tmp_path / "seg.dcm", in_order, by_name)
    np.testing.assert_array_equal(label_volume([seg], series, grid, None, LABELS), label)
    rois = {label_name: contours_of(mask, grid) for label_name, mask in by_name.items()}
    for decimals, least in ((4, 1.0), (2, 0.99)):  # scanners give 0.0001 mm, planning systems often 0.01 mm
        rtstruct = write_rtstruct(tmp_path / f"{decimals}.dcm", series, grid, rois, decimals=decimals)
        volume = label_volume([rtstruct], series, grid, None, LABELS)
        for value in (1, 2):
            assert dice(volume == value, label == value) >= least


def test_a_ct_map_of_41_classes_comes_back_from_seg_and_rtstruct(test_data: Path, tmp_path: Path) -> None:
    label = np.asarray(nibabel.load(test_data / "ct" / "example_seg.nii.gz").dataobj).astype(np.uint8)
    series, grid = series_of(write_series(tmp_path / "s", shape=label.shape, spacing=(3.0, 3.0, 3.0)))
    values = [value for value in np.unique(label).tolist() if value]
    names = {"background": 0, **{f"organ {value}": value for value in values}}
    by_name = {f"Organ {value}": label == value for value in values}
    assert len(by_name) == 41
    for kind in ("BINARY", "LABELMAP"):
        seg = write_seg_object(tmp_path / f"{kind}.dcm", [item.path for item in series.instances], by_name, kind=kind)
        np.testing.assert_array_equal(label_volume([seg], series, grid, None, names), label)
    rtstruct = write_rtstruct(tmp_path / "rt.dcm", series, grid, {name: contours_of(mask, grid) for name, mask in by_name.items()})
    volume = label_volume([rtstruct], series, grid, None, names, on_warning=lambda _fault: None)
    np.testing.assert_array_equal(volume, label)


def test_the_register_step_takes_labels_from_seg_and_rtstruct_by_rule(
    test_data: Path, hippocampus: Path, workspace: Workspace, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    label = np.asarray(nibabel.load(hippocampus / "labelsTr" / "hippocampus_190.nii.gz").dataobj, dtype=np.uint8)
    expected: dict[str, np.ndarray] = {}
    for number, name in enumerate(SERIES[1:]):
        shutil.copytree(test_data / "dicom" / name, source / name)
        series, grid = series_of(sorted((source / name).glob("*.dcm")))
        volume = fitted(label, grid.shape)
        front, back = volume == 1, volume == 2
        if number:
            rois = {"GTV anterior": contours_of(front, grid), "hind part": contours_of(back, grid), "couch": contours_of(back, grid)}
            write_rtstruct(source / name / "rt.dcm", series, grid, rois)
        else:
            paths = [instance.path for instance in series.instances]
            write_seg_object(source / name / "seg.dcm", paths, {"anterior": front, "Hind Part": back})
        expected[series.study_uid] = volume
    rules = {"Anterior": ["gtv.*"], "Posterior": ["hind part"], "skip": ["couch"]}
    result = register_dataset(
        workspace, source, channel_names={"0": "MRI"}, label_names=LABELS, label_rules=rules, series={"MRI": {"modality": "MR"}},
        holdout_fraction=0.0,
    )  # fmt: skip
    assert result["train"] == 2
    for study, volume in expected.items():
        [person] = [item for item in Identity(workspace.private).mapping(result["dataset"]).values() if item.study == study]
        image = nibabel.load(Path(result["path"]) / "labelsTr" / f"{person.case}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), volume)
    assert workspace.manifest(result["dataset"])["series"] == {"MRI": {"modality": "MR"}}
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source, dataset_id=5, channel_names={"0": "MRI"}, label_names=LABELS, holdout_fraction=0.0)
    assert {str(fault.code) for fault in caught.value.faults} == {"segment_unknown"}
    assert all(fault.case for fault in caught.value.faults)
