"""Registering again and again: growth, change, removal, repair, and what stock nnU-Net says of the result."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.testbed.data import context, decathlon, describe_decathlon, image_array, label_array, raw, register_dataset, tree, write_nifti
from nnunet_jobs.contract.failure import ConfigError, DataError, Interrupted
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.storage.files import sha256_file
from nnunet_jobs.steps import register


def inodes(folder: str) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in Path(folder).rglob("*.nii.gz")}


def test_nothing_new_writes_nothing(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    first = register_dataset(workspace, source)
    before = {path: path.stat().st_ctime_ns for path in Path(first["path"]).rglob("*")}
    for _ in range(2):
        again = register_dataset(workspace, source)
        assert again == {**first, "added": 0, "already_done": True}
    assert {path: path.stat().st_ctime_ns for path in Path(first["path"]).rglob("*")} == before


def test_a_later_run_appends_and_keeps_the_other_files(tmp_path, workspace):
    source = decathlon(tmp_path / "s", [f"c{n:02d}" for n in range(12)])
    first = register_dataset(workspace, source)
    kept, splits = inodes(first["path"]), {c: e["split"] for c, e in workspace.manifest("Dataset004_Small")["cases"].items()}
    decathlon(source, ["n1", "n2"], first_seed=50)
    describe_decathlon(source, [*splits, "n1", "n2"])
    second = register_dataset(workspace, source)
    assert (second["added"], second["changed"], second["removed"], second["already_done"]) == (2, 0, 0, False)
    assert second["hash"] != first["hash"]
    assert kept.items() <= inodes(second["path"]).items()
    manifest = workspace.manifest("Dataset004_Small")
    assert splits.items() <= {case: entry["split"] for case, entry in manifest["cases"].items()}.items()
    assert [(line["added"], line["hash"]) for line in manifest["history"]] == [(12, first["hash"]), (2, second["hash"])]
    description = json.loads((Path(second["path"]) / "dataset.json").read_text())
    assert description["numTraining"] == second["train"] == len(list((Path(second["path"]) / "imagesTr").iterdir()))


def test_growth_step_by_step_gives_the_dataset_that_one_run_gives(tmp_path, workspace):
    cases = [f"c{n:02d}" for n in range(30)]
    source = decathlon(tmp_path / "s", cases)
    whole = register_dataset(workspace, source, dataset_id=7, name="Whole", holdout_fraction=0.2)
    for count in (10, 11, 30):
        describe_decathlon(source, cases[:count])
        grown = register_dataset(workspace, source, dataset_id=7_000, name="Grown", holdout_fraction=0.2)
    assert grown["train"] + grown["holdout"] == 30
    describe_decathlon(source, cases[:6])
    shutil.rmtree(whole["path"])
    for count in (6, 30):
        describe_decathlon(source, cases[:count])
        again = register_dataset(workspace, source, dataset_id=7, name="Whole", holdout_fraction=0.2)
    assert (again["hash"], again["training_hash"]) == (whole["hash"], whole["training_hash"])


def test_a_changed_case_is_replaced_even_with_an_older_time_stamp(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    first = register_dataset(workspace, source, holdout_fraction=0.0)
    register_dataset(workspace, source, holdout_fraction=0.0)
    label = source / "labelsTr" / "b.nii.gz"
    old = label.stat()
    write_nifti(label, label_array((0, 2)))
    os.utime(label, ns=(old.st_atime_ns - 10**12, old.st_mtime_ns - 10**12))
    second = register_dataset(workspace, source, holdout_fraction=0.0)
    assert (second["added"], second["changed"]) == (0, 1)
    assert sha256_file(Path(second["path"]) / "labelsTr" / "b.nii.gz") == sha256_file(label)
    assert second["training_hash"] != first["training_hash"]


def test_on_changed_fail_names_the_case_and_changes_nothing(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b"])
    first = register_dataset(workspace, source)
    before = tree(Path(first["path"]))
    write_nifti(source / "imagesTr" / "a.nii.gz", image_array(99))
    with pytest.raises(DataError, match=r"case_changed \[a\].*on_changed to update"):
        register_dataset(workspace, source, on_changed="fail")
    assert tree(Path(first["path"])) == before


def test_removed_cases_are_kept_dropped_or_refused(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    first = register_dataset(workspace, source, holdout_fraction=0.0)
    describe_decathlon(source, ["a", "b"])
    with pytest.raises(DataError, match=r"case_removed \[c\]"):
        register_dataset(workspace, source, holdout_fraction=0.0, on_removed="fail")
    kept = register_dataset(workspace, source, holdout_fraction=0.0)
    assert (kept["removed"], kept["hash"], kept["train"], kept["already_done"]) == (0, first["hash"], 3, True)
    dropped = register_dataset(workspace, source, holdout_fraction=0.0, on_removed="drop")
    assert (dropped["removed"], dropped["train"]) == (1, 2)
    assert not (Path(dropped["path"]) / "imagesTr" / "c_0000.nii.gz").exists()


def test_a_source_with_only_the_new_cases_appends_them(tmp_path, workspace):
    register_dataset(workspace, decathlon(tmp_path / "one", ["a", "b"]))
    result = register_dataset(workspace, decathlon(tmp_path / "two", ["c"], first_seed=9))
    assert (result["added"], result["train"]) == (1, 3)


def test_a_test_image_that_gets_its_label_joins_the_training(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b"], test=["t"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    shutil.move(source / "imagesTs" / "t.nii.gz", source / "imagesTr" / "t.nii.gz")
    write_nifti(source / "labelsTr" / "t.nii.gz", label_array())
    describe_decathlon(source, ["a", "b", "t"])
    result = register_dataset(workspace, source, holdout_fraction=0.0)
    assert (result["train"], result["test"], result["changed"]) == (3, 0, 1)
    assert not (Path(result["path"]) / "imagesTs").exists()


def test_damaged_registered_files_are_found_and_mended(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    first = register_dataset(workspace, source, holdout_fraction=0.0)
    before = tree(Path(first["path"]))
    path = Path(first["path"]) / "imagesTr" / "a_0000.nii.gz"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (Path(first["path"]) / "labelsTr" / "b.nii.gz").unlink()
    result = register_dataset(workspace, source, holdout_fraction=0.0)
    assert (result["changed"], result["already_done"], result["hash"]) == (0, False, first["hash"])
    assert tree(Path(first["path"])) == before
    describe_decathlon(source, ["b", "c"])
    path.unlink()
    with pytest.raises(DataError, match="the source no longer has it"):
        register_dataset(workspace, source, holdout_fraction=0.0)


def test_a_new_table_is_checked_against_old_cases(tmp_path, workspace):
    source = raw(tmp_path / "s", ["a", "b"])
    first = register_dataset(workspace, source)
    with pytest.raises(DataError, match="are not declared"):
        register_dataset(workspace, source, label_names={"background": 0, "front": 1})
    more = register_dataset(workspace, source, label_names={"background": 0, "front": 1, "back": 2, "new": 3})
    assert more["hash"] != first["hash"]
    assert json.loads((Path(more["path"]) / "dataset.json").read_text())["labels"]["new"] == 3


def test_other_content_under_a_taken_name_is_refused(tmp_path, workspace):
    first = register_dataset(workspace, decathlon(tmp_path / "one", ["a", "b"]))
    before = tree(Path(first["path"]))
    with pytest.raises(ConfigError, match=r"taken by other content.*choose another dataset_id"):
        register_dataset(workspace, decathlon(tmp_path / "two", ["a", "b"], first_seed=100))
    with pytest.raises(ConfigError, match="taken by other content"):
        register_dataset(workspace, decathlon(tmp_path / "three", ["x", "y"], channels=2), on_removed="drop")
    with pytest.raises(ConfigError, match=r"dataset_id=4: is taken by Dataset004_Small, so Dataset004_Other"):
        register_dataset(workspace, tmp_path / "one", name="Other")
    assert tree(Path(first["path"])) == before


def test_a_folder_that_was_made_by_hand_is_left_alone(tmp_path, workspace):
    by_hand = raw(Path(workspace.raw) / "Dataset004_Small", ["a"])
    with pytest.raises(ConfigError, match=r"made by hand; move .* away"):
        register_dataset(workspace, raw(tmp_path / "s", ["a"]))
    assert (by_hand / "labelsTr" / "a.nii.gz").exists()


def test_strange_files_among_the_cases_are_named_and_other_files_survive(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b"])
    folder = Path(register_dataset(workspace, source)["path"])
    (folder / "notes").mkdir()
    (folder / "notes" / "readme.txt").write_text("by a person")
    (folder / "imagesTr" / "mine_0000.nii.gz").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"imagesTr/mine_0000.nii.gz.*move them away"):
        register_dataset(workspace, source)
    (folder / "imagesTr" / "mine_0000.nii.gz").unlink()
    decathlon(source, ["c"], first_seed=8)
    describe_decathlon(source, ["a", "b", "c"])
    assert register_dataset(workspace, source)["added"] == 1
    assert (folder / "notes" / "readme.txt").read_text() == "by a person"


def test_holdout_stays_when_the_settings_change(tmp_path, workspace):
    source = decathlon(tmp_path / "s", [f"c{n:02d}" for n in range(20)])
    register_dataset(workspace, source, holdout_fraction=0.3)
    before = {case: entry["split"] for case, entry in workspace.manifest("Dataset004_Small")["cases"].items()}
    register_dataset(workspace, source, holdout_fraction=0.0)
    assert {case: entry["split"] for case, entry in workspace.manifest("Dataset004_Small")["cases"].items()} == before
    training = next(case for case, split in before.items() if split == "train")
    with pytest.raises(ConfigError, match="training data before"):
        register_dataset(workspace, source, holdout_cases=[training])
    with pytest.raises(ConfigError, match="did you mean 'c07'"):
        register_dataset(workspace, source, holdout_cases=["c07x"])
    with pytest.raises(ConfigError, match="joins training and hold-out"):
        register_dataset(workspace, source, group_pattern="(c)")


@pytest.mark.parametrize("transfer", ["auto", "hardlink", "copy"])
def test_ways_of_transfer(tmp_path, workspace, transfer):
    source = decathlon(tmp_path / "s", ["a", "b"])
    (source / "imagesTr" / "a.nii.gz").chmod(0o444)
    result = register_dataset(workspace, source, transfer=transfer, holdout_fraction=0.0)
    images = Path(result["path"]) / "imagesTr"
    linked = [(source / "imagesTr" / f"{name}.nii.gz").samefile(images / f"{name}_0000.nii.gz") for name in "ab"]
    if transfer == "auto":
        assert not linked[1]  # somebody may edit the source in place
    else:
        assert linked == [transfer == "hardlink"] * 2
    original = (source / "imagesTr" / "b.nii.gz").read_bytes()
    write_nifti(source / "imagesTr" / "b.nii.gz", image_array(70))
    register_dataset(workspace, source, transfer=transfer, holdout_fraction=0.0)
    assert (Path(result["path"]) / "imagesTr" / "b_0000.nii.gz").read_bytes() == (source / "imagesTr" / "b.nii.gz").read_bytes() != original


def test_a_transfer_that_does_not_work_here_names_the_mend(tmp_path, workspace):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev or not os.access(memory, os.W_OK):
        pytest.skip("no second file system")
    source = memory / f"nnunet-test-{os.getpid()}"
    try:
        decathlon(source, ["a"])
        allowed = type(workspace)(**{**workspace.to_json(), "input_roots": (str(memory),)})
        with pytest.raises(ConfigError, match=r"transfer='hardlink'.*use auto or copy"):
            register_dataset(allowed, source, transfer="hardlink")
        assert register_dataset(allowed, source)["added"] == 1
    finally:
        shutil.rmtree(source, ignore_errors=True)


def test_a_stop_request_ends_the_step_and_the_next_run_finishes(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b"])
    surroundings = context(workspace)
    surroundings.stop.set()
    with pytest.raises(Interrupted):
        register.run(RegisterParams(dataset_id=4, name="Small", source=str(source)), surroundings)
    assert workspace.datasets() == {}
    assert register_dataset(workspace, source)["added"] == 2
    records, _ = surroundings.job.read_metrics()
    assert {record["phase"] for record in records} >= {"validate", "copy"}


def test_stock_nnunet_accepts_the_result(tmp_path, workspace):
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    source = raw(tmp_path / "s", [f"c{n}" for n in range(4)], channels=2, labels=labels, regions_class_order=[1, 2])
    result = register_dataset(workspace, source, holdout_cases=["c1"], holdout_fraction=0.0)
    script = (
        "import sys; from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity\n"
        "if __name__ == '__main__': verify_dataset_integrity(sys.argv[1], 1)\n"
    )
    (tmp_path / "verify.py").write_text(script)
    environment = {**os.environ, **workspace.nnunet_environment(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "verify.py"), result["path"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "verify_dataset_integrity Done" in done.stdout


def test_200_real_cases(hippocampus, tmp_path, workspace):
    allowed = type(workspace)(**{**workspace.to_json(), "input_roots": (str(hippocampus),)})
    first = register_dataset(allowed, hippocampus, name="Hippocampus")
    assert first["added"] == first["train"] + first["holdout"] == 200
    assert 8 <= first["holdout"] <= 36
    manifest = allowed.manifest("Dataset004_Hippocampus")
    assert manifest["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert all(entry["values"] == [0, 1, 2] for entry in manifest["cases"].values())
    assert register_dataset(allowed, hippocampus, name="Hippocampus")["already_done"]
