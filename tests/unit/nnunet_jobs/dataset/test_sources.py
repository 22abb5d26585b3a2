"""Layouts, tables and names: what a source may look like and what is refused, with the fix."""

import json
import os
from pathlib import Path

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pytest

from devtools.testbed.data import LABELS, SHAPE, decathlon, image_array, label_array, raw, register_dataset, tree, write_nifti
from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.storage.files import sha256_file


def names(path: str | Path, folder: str) -> list[str]:
    return sorted(entry.name for entry in (Path(path) / folder).iterdir())


def codes(error: DataError) -> set[tuple[str, str | None]]:
    return {(fault.code, fault.case) for fault in error.faults}


def test_decathlon_with_test_images(tmp_path, workspace):
    result = register_dataset(workspace, decathlon(tmp_path / "s", ["a", "b", "c"], test=["t"]), holdout_cases=["b"], holdout_fraction=0.0)
    assert {key: result[key] for key in ("train", "holdout", "test", "added", "already_done")} == {
        "train": 2, "holdout": 1, "test": 1, "added": 3 + 1, "already_done": False,
    }  # fmt: skip
    folder = result["path"]
    assert names(folder, "imagesTr") == ["a_0000.nii.gz", "c_0000.nii.gz"]
    assert names(folder, "labelsTr") == ["a.nii.gz", "c.nii.gz"]
    assert names(folder, "imagesTs") == ["b_0000.nii.gz", "t_0000.nii.gz"]
    assert names(folder, "labelsTs") == ["b.nii.gz"]
    description = json.loads((Path(folder) / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "C0"}
    assert description["labels"] == LABELS
    assert description["numTraining"] == 2
    assert description["file_ending"] == ".nii.gz"
    assert description["licence"] == "CC0"
    manifest = workspace.manifest("Dataset004_Small")
    entry = manifest["cases"]["a"]
    assert entry["images"] == [sha256_file(Path(folder) / "imagesTr" / "a_0000.nii.gz")]
    assert entry["label"] == sha256_file(tmp_path / "s" / "labelsTr" / "a.nii.gz")
    assert entry["shape"] == list(SHAPE)
    assert entry["spacing"] == [1.0, 1.0, 1.0]
    assert manifest["cases"]["t"] | {"label": None, "split": "test"} == manifest["cases"]["t"]


@pytest.mark.parametrize("dtype", [np.float32, np.int16, ">i2", np.uint8])
def test_4d_channels_are_split_bit_for_bit(tmp_path, workspace, dtype):
    source = decathlon(tmp_path / "s", ["a", "b"], channels=3)
    affine = np.diag([-0.7, 0.8, 2.5, 1.0])
    affine[:3, 3] = (12.5, -3, 40)
    voxels = (image_array(5, (*SHAPE, 3))).astype(dtype)
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_data_dtype(dtype)
    if np.dtype(dtype).kind == "i":
        image.header.set_slope_inter(0.5, -7)
    nibabel.save(image, source / "imagesTr" / "a.nii.gz")
    write_nifti(source / "labelsTr" / "a.nii.gz", label_array(), affine=affine)
    expected = nibabel.load(source / "imagesTr" / "a.nii.gz")
    result = register_dataset(workspace, source, holdout_fraction=0.0)
    for channel in range(3):
        part = nibabel.load(Path(result["path"]) / "imagesTr" / f"a_{channel:04d}.nii.gz")
        assert part.shape == SHAPE
        assert part.get_data_dtype() == expected.get_data_dtype()
        assert part.header.get_zooms() == pytest.approx((0.7, 0.8, 2.5))
        np.testing.assert_array_equal(part.affine, expected.affine)
        np.testing.assert_array_equal(np.asarray(part.dataobj), np.asarray(expected.dataobj)[..., channel])
    again = register_dataset(workspace, source, holdout_fraction=0.0)
    assert again["already_done"]


def test_raw_layout_with_regions_and_an_ignore_label(tmp_path, workspace):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    source = raw(tmp_path / "s", ["a", "b"], channels=2, labels=labels, regions_class_order=[1, 2], reference="somewhere")
    write_nifti(source / "labelsTr" / "b.nii.gz", label_array((0, 1, 2, 3)))
    result = register_dataset(workspace, source, holdout_fraction=0.0)
    description = json.loads((Path(result["path"]) / "dataset.json").read_text())
    assert description["labels"] == labels
    assert description["regions_class_order"] == [1, 2]
    assert description["reference"] == "somewhere"
    assert names(result["path"], "imagesTr") == ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"]


def test_raw_layout_keeps_its_own_test_cases_as_holdout(tmp_path, workspace):
    source = raw(tmp_path / "s", [f"c{n}" for n in range(8)])
    write_nifti(source / "imagesTs" / "t_0000.nii.gz", image_array(1))
    write_nifti(source / "labelsTs" / "t.nii.gz", label_array())
    write_nifti(source / "imagesTs" / "u_0000.nii.gz", image_array(2))
    result = register_dataset(workspace, source)
    assert (result["train"], result["holdout"], result["test"]) == (8, 1, 1)
    exported = register_dataset(workspace, Path(result["path"]), dataset_id=5, name="Again")
    assert (exported["train"], exported["holdout"], exported["test"]) == (8, 1, 1)


def test_raw_layout_with_a_dataset_list(tmp_path, workspace):
    source = raw(tmp_path / "s", [], dataset={"a": {"images": ["scans/one.nii.gz"], "label": "./truth/one.nii.gz"}})
    write_nifti(source / "scans" / "one.nii.gz", image_array(1))
    write_nifti(source / "truth" / "one.nii.gz", label_array())
    assert names(register_dataset(workspace, source)["path"], "imagesTr") == ["a_0000.nii.gz"]


def test_two_folders_with_a_naming_rule(tmp_path, workspace):
    for case in ("p01", "p02"):
        for modality in ("T1", "T2"):
            write_nifti(tmp_path / "s" / "mr" / f"{case}-{modality}.nii.gz", image_array(1))
        write_nifti(tmp_path / "s" / "truth" / f"{case}.nii", label_array())
    result = register_dataset(
        workspace, tmp_path / "s", images="mr", labels="truth", case_pattern=r"(?P<case>p\d+)-(?P<channel>T\d)\.nii\.gz",
        channel_names={"0": "T1", "1": "T2"}, label_names=LABELS,
    )  # fmt: skip
    assert names(result["path"], "imagesTr") == ["p01_0000.nii.gz", "p01_0001.nii.gz", "p02_0000.nii.gz", "p02_0001.nii.gz"]
    assert names(result["path"], "labelsTr") == ["p01.nii.gz", "p02.nii.gz"]  # compressed, since nnU-Net wants one ending
    label = nibabel.load(Path(result["path"]) / "labelsTr" / "p01.nii.gz")
    np.testing.assert_array_equal(np.asarray(label.dataobj), label_array())


def test_uncompressed_images_stay_uncompressed(tmp_path, workspace):
    write_nifti(tmp_path / "s" / "images" / "a.nii", image_array(1))
    write_nifti(tmp_path / "s" / "labels" / "a.nii.gz", label_array())
    result = register_dataset(workspace, tmp_path / "s", channel_names={"0": "T1"}, label_names=LABELS)
    assert names(result["path"], "imagesTr") == ["a_0000.nii"]
    assert names(result["path"], "labelsTr") == ["a.nii"]


def test_folders_need_tables_and_say_so(tmp_path, workspace):
    write_nifti(tmp_path / "s" / "images" / "a.nii.gz", image_array(1))
    write_nifti(tmp_path / "s" / "labels" / "a.nii.gz", label_array())
    with pytest.raises(ConfigError, match="channel_names is missing"):
        register_dataset(workspace, tmp_path / "s")
    with pytest.raises(ConfigError, match="label_names is missing"):
        register_dataset(workspace, tmp_path / "s", channel_names={"0": "T1"})


def test_numbers_at_the_end_of_a_case_id_are_explained(tmp_path, workspace):
    for number in (1, 2):
        write_nifti(tmp_path / "s" / "images" / f"pat_{number:04d}.nii.gz", image_array(1))
        write_nifti(tmp_path / "s" / "labels" / f"pat_{number:04d}.nii.gz", label_array())
    tables = {"channel_names": {"0": "T1"}, "label_names": LABELS}
    with pytest.raises(DataError, match="set case_pattern"):
        register_dataset(workspace, tmp_path / "s", **tables)
    assert register_dataset(workspace, tmp_path / "s", case_pattern=r"(?P<case>.+)\.nii\.gz", **tables)["added"] == 2


def test_an_unknown_layout_says_what_was_expected(tmp_path, workspace):
    (tmp_path / "s").mkdir()
    with pytest.raises(ConfigError, match="layout not recognised"):
        register_dataset(workspace, tmp_path / "s")
    with pytest.raises(ConfigError, match="no such folder"):
        register_dataset(workspace, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="input_roots"):
        register_dataset(workspace, Path("/etc"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": ' * 100_000, None])
def test_an_unreadable_description_is_named(tmp_path, workspace, content):
    source = raw(tmp_path / "s", ["a"])
    (source / "dataset.json").unlink()
    if content is None:
        os.mkfifo(source / "dataset.json")
    else:
        (source / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"description_invalid \[dataset.json\]"):
        register_dataset(workspace, source)


def test_hidden_files_are_no_cases(tmp_path, workspace):
    source = raw(tmp_path / "s", ["a"])
    (source / "imagesTr" / "._a_0000.nii.gz").write_bytes(b"finder")
    (source / "labelsTr" / ".DS_Store").write_bytes(b"finder")
    assert register_dataset(workspace, source)["added"] == 1


def test_all_listing_faults_come_in_one_report(tmp_path, workspace):
    source = raw(tmp_path / "s", ["ok", "gap", "nolabel"], channels=3)
    (source / "imagesTr" / "gap_0001.nii.gz").unlink()
    (source / "labelsTr" / "nolabel.nii.gz").unlink()
    write_nifti(source / "imagesTr" / "ok_0007.nii.gz", image_array(1))
    write_nifti(source / "labelsTr" / "lonely.nii.gz", label_array())
    write_nifti(source / "imagesTr" / "odd.nii.gz", image_array(1))
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert codes(caught.value) == {
        ("channel_missing", "gap"), ("label_missing", "nolabel"), ("channel_extra", "ok"),
        ("label_without_image", "lonely"), ("name_unmatched", None),
    }  # fmt: skip
    assert "lonely.nii.gz" in str(caught.value)
    assert not Path(workspace.raw, "Dataset004_Small").exists()


def test_duplicates_and_clashing_ids(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "A", "b"])
    description = json.loads((source / "dataset.json").read_text())
    description["training"].append(description["training"][2])
    (source / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert codes(caught.value) == {("name_clash", "a"), ("name_clash", "A"), ("case_duplicate", "b")}


def test_ids_that_differ_by_unicode_form_clash(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["b\u00e4r", "ba\u0308r"])
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert {fault.code for fault in caught.value.faults} == {"name_clash", "name_invalid"}


@pytest.mark.parametrize(
    ("labels", "order", "what"),
    [
        ({"background": 0, "a": 2}, None, "without a gap"),
        ({"a": 1}, None, "'background'"),
        ({"background": 0, "a": 1, "ignore": 1}, None, "'ignore'"),
        ({"background": 0, "a": 1, "b": 1}, None, "share one value"),
        ({"background": 0, "a": "one"}, None, "must be an integer"),
        ({"background": 0, "a": True}, None, "must be an integer"),
        ({"background": 0, "a": -1}, None, "must be an integer"),
        ({"background": 0, "w": [1, 2], "c": 2}, None, "regions_class_order"),
        ({"background": 0, "w": [1, 2], "c": 2}, [2, 1], "not a value of the region"),
        ({"background": 0, "bad\nname": 1}, None, "bad"),
        ({}, None, "must map"),
    ],
)
def test_label_tables_are_held_to_nnunets_rules(tmp_path, workspace, labels, order, what):
    source = raw(tmp_path / "s", ["a"])
    with pytest.raises(ConfigError, match=what):
        register_dataset(workspace, source, label_names=labels, regions_class_order=order)


def test_channel_tables_are_checked(tmp_path, workspace):
    source = raw(tmp_path / "s", ["a"], channels=2)
    with pytest.raises(ConfigError, match="must be 0, 1"):
        register_dataset(workspace, source, channel_names={"0": "a", "2": "b"})
    with pytest.raises(DataError, match=r"channels \[2\] of 3"):
        register_dataset(workspace, source, channel_names={"0": "a", "1": "b", "2": "c"})


def test_a_link_inside_the_source_is_followed_and_copied(tmp_path, workspace):
    source = raw(tmp_path / "s", ["a"])
    (source / "store").mkdir()
    target = source / "imagesTr" / "a_0000.nii.gz"
    os.rename(target, source / "store" / "x.nii.gz")
    target.symlink_to("../store/x.nii.gz")
    result = register_dataset(workspace, source)
    assert not (Path(result["path"]) / "imagesTr" / "a_0000.nii.gz").is_symlink()
    assert tree(Path(result["path"]))["imagesTr/a_0000.nii.gz"] == (source / "store" / "x.nii.gz").read_bytes()
