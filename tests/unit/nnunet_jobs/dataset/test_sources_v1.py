"""nnU-Net's first raw layout, and how it is told from the Decathlon's, whose description looks the same."""

import json
from pathlib import Path

import pytest

from devtools.testbed.data import LABELS, decathlon, image_array, label_array, raw, register_dataset, write_nifti
from nnunet_jobs.contract.failure import ConfigError, DataError
from support.layouts import bids, nnunet_v1


def test_a_task_folder_is_read(tmp_path, workspace):
    source = nnunet_v1(tmp_path / "Task004_Small", ["a", "b", "c"], channels=2, test=["t", "u"])
    write_nifti(source / "labelsTs" / "u.nii.gz", label_array())
    result = register_dataset(workspace, source)
    assert (result["train"], result["holdout"], result["test"]) == (3, 1, 1)
    description = json.loads((Path(result["path"]) / "dataset.json").read_text())
    assert (description["labels"], description["channel_names"]) == (LABELS, {"0": "C0", "1": "C1"})
    for channel in range(2):
        name = f"imagesTr/b_{channel:04d}.nii.gz"
        assert (Path(result["path"]) / name).read_bytes() == (source / name).read_bytes()
    assert register_dataset(workspace, source)["already_done"]


def test_the_files_on_disk_tell_the_two_layouts_apart(tmp_path, workspace):
    assert register_dataset(workspace, decathlon(tmp_path / "msd", ["a_0000", "b_0000"]))["added"] == 2
    assert set(workspace.manifest("Dataset004_Small")["cases"]) == {"a_0000", "b_0000"}
    register_dataset(workspace, nnunet_v1(tmp_path / "v1", ["a", "b"]), dataset_id=5)
    assert set(workspace.manifest("Dataset005_Small")["cases"]) == {"a", "b"}
    version_2 = raw(tmp_path / "v2", ["a", "b"], training=[{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}])
    register_dataset(workspace, version_2, dataset_id=6)
    assert set(workspace.manifest("Dataset006_Small")["cases"]) == {"a", "b"}


def test_what_the_list_and_the_disk_disagree_on_is_named(tmp_path, workspace):
    source = nnunet_v1(tmp_path / "s", ["a", "b", "c", "d", "e"], channels=2)
    (source / "imagesTr" / "a_0001.nii.gz").unlink()
    write_nifti(source / "imagesTr" / "b_0002.nii.gz", image_array(1))
    (source / "labelsTr" / "c.nii.gz").unlink()
    for channel in range(2):
        (source / "imagesTr" / f"d_000{channel}.nii.gz").unlink()
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert {(fault.code, fault.case) for fault in caught.value.faults} == {
        ("channel_missing", "a"), ("channel_extra", "b"), ("label_missing", "c"), ("image_missing", "d"),
    }  # fmt: skip


@pytest.mark.parametrize("field", ["image", "label"])
@pytest.mark.parametrize("path", ["../secret.nii.gz", "/etc/secret.nii.gz", "$HOME/secret.nii.gz", "a\nb.nii.gz"])
def test_fault_52_paths_that_leave_a_version_1_source(tmp_path, workspace, field, path):
    source = nnunet_v1(tmp_path / "s", ["a", "b"])
    description = json.loads((source / "dataset.json").read_text())
    description["training"][1][field] = path
    (source / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert "path_outside" in {fault.code for fault in caught.value.faults}
    assert workspace.datasets() == {}


def test_an_unknown_layout_is_explained(tmp_path, workspace):
    (tmp_path / "s" / "scans").mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        register_dataset(workspace, tmp_path / "s")
    message = str(caught.value)
    assert "the folder holds 'scans/'" in message
    for name in ("csv", "nnunet_v1", "decathlon", "nnunet", "bids", "folders"):
        assert f"\n  {name}: " in message
    bids(tmp_path / "s" / "study", ["01"])
    with pytest.raises(ConfigError, match=f"did you mean '{tmp_path}/s/study'"):
        register_dataset(workspace, tmp_path / "s")
    (tmp_path / "s" / "dataset.json").write_text('{"labels": {}, "title": "x"}')
    with pytest.raises(ConfigError, match=r"its dataset\.json has 'labels', 'title'"):
        register_dataset(workspace, tmp_path / "s")
