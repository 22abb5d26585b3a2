"""BIDS derivatives: which files become which case, channel and label, and what is said when that is not clear."""

import json
import os
import shutil
from pathlib import Path

import pytest

from devtools.testbed.data import LABELS, image_array, label_array, register_dataset, write_nifti
from nnunet_jobs.contract.failure import ConfigError, DataError
from support.layouts import bids


def cases(workspace):
    return workspace.manifest("Dataset004_Small")["cases"]


def faults(error: DataError) -> set[tuple[str, str | None]]:
    return {(fault.code, fault.case) for fault in error.faults}


def test_subjects_become_cases_and_patients(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01", "02"], unlabelled=["03"])
    result = register_dataset(workspace, source, holdout_fraction=0.0)
    assert (result["train"], result["test"], result["already_done"]) == (2, 1, False)
    assert sorted(path.name for path in Path(result["path"], "imagesTr").iterdir()) == ["sub-01_0000.nii.gz", "sub-02_0000.nii.gz"]
    assert sorted(path.name for path in Path(result["path"], "imagesTs").iterdir()) == ["sub-03_0000.nii.gz"]
    description = json.loads(Path(result["path"], "dataset.json").read_text())
    assert description["labels"] == LABELS  # from dseg.tsv
    assert description["channel_names"] == {"0": "T1w"}  # the only kind of image there
    assert {case: entry["group"] for case, entry in cases(workspace).items()} == {f"sub-0{n}": f"sub-0{n}" for n in (1, 2, 3)}
    assert register_dataset(workspace, source, holdout_fraction=0.0)["already_done"]


def test_a_subjects_sessions_stay_on_one_side(tmp_path, workspace):
    source = bids(tmp_path / "s", [f"{n:02d}" for n in range(8)], sessions=["a", "bb"])
    register_dataset(workspace, source, holdout_fraction=0.4)
    registered = cases(workspace)
    assert sorted(registered)[:2] == ["sub-00_ses-a", "sub-00_ses-bb"]
    splits = {(entry["group"], entry["split"]) for entry in registered.values()}
    assert len(splits) == 8
    assert {split for _, split in splits} == {"train", "holdout"}


def test_channels_are_chosen_by_suffix_and_entities(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01", "02"], images=["T1w", "ce-gad_T1w", "FLAIR", "bold"])
    with pytest.raises(ConfigError, match=r"channel_names is missing.*T1w \(4 files\), FLAIR \(2 files\)"):
        register_dataset(workspace, source)
    result = register_dataset(workspace, source, channel_names={"0": "FLAIR", "1": "T1w", "2": "ce-gad_T1w"}, holdout_fraction=0.0)
    for channel, name in enumerate(["FLAIR", "T1w", "ce-gad_T1w"]):
        original = source / "sub-01" / "anat" / f"sub-01_{name}.nii.gz"
        assert (Path(result["path"]) / "imagesTr" / f"sub-01_{channel:04d}.nii.gz").read_bytes() == original.read_bytes()


def test_ct_is_found_whatever_its_case(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01", "02"], images=["ct"])
    assert register_dataset(workspace, source, channel_names={"0": "CT"})["added"] == 2


def test_a_channel_that_a_subject_lacks_is_named(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01", "02"], images=["T1w", "FLAIR"])
    (source / "sub-02" / "anat" / "sub-02_FLAIR.nii.gz").unlink()
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source, channel_names={"0": "T1w", "1": "FLAIR"})
    assert faults(caught.value) == {("channel_missing", "sub-02")}


def test_no_image_of_that_suffix_says_which_there_are(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01"], images=["T2w"])
    with pytest.raises(DataError, match=r"suffixes there: T2w \(1 files\)"):
        register_dataset(workspace, source, channel_names={"0": "T1w"})


def test_repeated_runs_are_cases_of_one_patient(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01"], images=["run-1_T1w", "run-2_T1w"], label="run-1_dseg")
    write_nifti(source / "derivatives" / "manual" / "sub-01" / "anat" / "sub-01_run-2_dseg.nii.gz", label_array())
    register_dataset(workspace, source, holdout_fraction=0.0)
    assert {case: entry["group"] for case, entry in cases(workspace).items()} == {"sub-01_run-1": "sub-01", "sub-01_run-2": "sub-01"}


def test_two_files_for_one_channel_are_a_question(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01", "02"], images=["acq-ax_T1w", "acq-sag_T1w"])
    with pytest.raises(DataError, match="name the entities in channel_names, such as 'acq-highres_T1w'") as caught:
        register_dataset(workspace, source)
    assert faults(caught.value) == {("case_duplicate", "sub-01"), ("case_duplicate", "sub-02")}
    assert register_dataset(workspace, source, channel_names={"0": "acq-ax_T1w"})["added"] == 2


def test_two_label_files_are_a_question(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01", "02"], label="label-lesion_mask", table=False)
    bids(source, ["01", "02"], label="label-brain_mask", table=False)
    with pytest.raises(ConfigError, match="label_names is missing"):
        register_dataset(workspace, source)
    with pytest.raises(DataError, match="set bids_label to the one that is meant") as caught:
        register_dataset(workspace, source, label_names={"background": 0, "lesion": 1})
    assert faults(caught.value) == {("case_duplicate", "sub-01"), ("case_duplicate", "sub-02")}
    result = register_dataset(workspace, source, bids_label="label-lesion_mask")
    assert json.loads(Path(result["path"], "dataset.json").read_text())["labels"] == {"background": 0, "lesion": 1}


def test_segmentations_win_over_masks(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01", "02"])
    bids(source, ["01", "02"], label="desc-brain_mask")
    assert register_dataset(workspace, source)["added"] == 2
    assert cases(workspace)["sub-01"]["values"] == [0, 1, 2]


def test_several_pipelines_are_a_question(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01", "02"])
    bids(source, ["01", "02"], pipeline="auto")
    with pytest.raises(ConfigError, match=r"'derivatives/auto', 'derivatives/manual'.*set labels"):
        register_dataset(workspace, source)
    assert register_dataset(workspace, source, labels="derivatives/manual")["added"] == 2
    with pytest.raises(ConfigError, match=r"labels='\.\./x'"):
        register_dataset(workspace, source, labels="../x")


def test_missing_labels_say_where_they_were_looked_for(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01"])
    shutil.rmtree(source / "derivatives")
    with pytest.raises(ConfigError, match="no label file with the suffix dseg or mask"):
        register_dataset(workspace, source)


def test_a_label_without_image_and_a_file_in_the_wrong_subject_are_named(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01", "02"])
    write_nifti(source / "derivatives" / "manual" / "sub-09" / "anat" / "sub-09_dseg.nii.gz", label_array())
    write_nifti(source / "sub-01" / "anat" / "sub-02_T1w.nii.gz", image_array(1))
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert {(fault.code, fault.file) for fault in caught.value.faults} == {
        ("label_without_image", "derivatives/manual/sub-09/anat/sub-09_dseg.nii.gz"),
        ("name_unmatched", "sub-01/anat/sub-02_T1w.nii.gz"),
    }


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("index,name\n1,a\n", "needs the columns 'index' and 'name'"),
        ("index\tname\nx\ta\n", "line 2: index='x' must be an integer"),
        ("index\tname\n1\ta\n1\tb\n", "line 3: 1 'b' is there twice"),
        ("index\tname\n1\ta\n3\tb\n", "without a gap"),
    ],
)
def test_a_wrong_lookup_table_is_named(tmp_path, workspace, content, what):
    source = bids(tmp_path / "s", ["01"])
    (source / "derivatives" / "manual" / "dseg.tsv").write_text(content)
    with pytest.raises(DataError, match=what):
        register_dataset(workspace, source)


def test_tables_beside_the_labels_must_agree(tmp_path, workspace):
    source = bids(tmp_path / "s", ["01", "02"], table=False)
    folder = source / "derivatives" / "manual"
    for subject in ("01", "02"):
        (folder / f"sub-{subject}" / "anat" / f"sub-{subject}_dseg.tsv").write_text("index\tname\n0\tnothing\n1\tfront\n2\tback\n")
    result = register_dataset(workspace, source)
    assert json.loads(Path(result["path"], "dataset.json").read_text())["labels"] == LABELS
    (folder / "sub-02" / "anat" / "sub-02_dseg.tsv").write_text("index\tname\n1\tback\n2\tfront\n")
    with pytest.raises(DataError, match="names other labels than"):
        register_dataset(workspace, source)


@pytest.mark.parametrize(
    "link", ["sub-02", "sub-02/anat", "sub-02/anat/sub-02_T1w.nii.gz", "derivatives/manual", "derivatives/manual/dseg.tsv"]
)
def test_fault_52_links_that_leave_a_bids_source(tmp_path, workspace, link):
    source = bids(tmp_path / "s", ["01", "02"])
    shutil.move(source / link, tmp_path / "elsewhere")
    (source / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert ("path_outside", link) in {(fault.code, fault.file) for fault in caught.value.faults}
    assert workspace.datasets() == {}


def test_links_into_the_sources_own_store_are_followed(tmp_path, workspace):
    """As git-annex keeps files."""
    source = bids(tmp_path / "s", ["01", "02"])
    store = source / ".git" / "annex" / "objects"
    store.mkdir(parents=True)
    for number, path in enumerate(sorted(source.rglob("*.nii.gz"))):
        shutil.move(path, store / f"{number}.nii.gz")
        path.symlink_to(os.path.relpath(store / f"{number}.nii.gz", path.parent))
    assert register_dataset(workspace, source)["added"] == 2


@pytest.mark.parametrize("subject", [";$(touch pwned)", "a\nb", "a b"])
def test_fault_53_hostile_subjects(tmp_path, workspace, monkeypatch, subject):
    monkeypatch.chdir(tmp_path)
    source = bids(tmp_path / "s", ["01", subject])
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert {fault.code for fault in caught.value.faults} == {"name_invalid"}
    assert not (tmp_path / "pwned").exists()
    assert register_dataset(workspace, source, rename=True)["added"] == 2
