"""Withdrawal from nnUNet_raw: what goes, what stays away, what is said."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.testbed.data import context, decathlon, describe_decathlon, label_array, raw, register_dataset, tree, write_nifti
from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.contract.storage.withdrawals import Tombstones, WithdrawParams
from nnunet_jobs.steps import withdraw

NAME = "Dataset004_Small"


def take_out(workspace, *cases, **params):
    return withdraw.run(WithdrawParams(dataset="4", cases=list(cases), **params), context(workspace, "withdraw"))


def present(workspace, case):
    return sorted(str(path.relative_to(workspace.raw)) for path in Path(workspace.raw).rglob(f"*{case}*"))


def test_the_case_goes_and_the_others_are_not_touched(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "a1", "b", "c"], channels=2)
    first = register_dataset(workspace, source, holdout_fraction=0.0)
    inodes = {path.name: path.stat().st_ino for path in Path(first["path"]).rglob("*.nii.gz")}
    result = take_out(workspace, "a", reason="letter of the 3rd")
    assert (result["cases"], result["splits"], result["already_done"]) == (["a"], {"a": "train"}, False)
    left = {path.name: path.stat().st_ino for path in Path(first["path"]).rglob("*.nii.gz")}
    assert left == {name: inode for name, inode in inodes.items() if not name.startswith(("a_", "a."))}
    assert json.loads((Path(first["path"]) / "dataset.json").read_text())["numTraining"] == 3
    manifest = workspace.manifest(NAME)
    assert sorted(manifest["cases"]) == ["a1", "b", "c"]
    line = manifest["history"][-1]
    assert (line["withdrawn"], line["removed"], line["cases"], line["reason"]) == (1, 0, {"withdrawn": ["a"]}, "letter of the 3rd")
    assert (line["previous"], line["hash"]) == (first["hash"], manifest["hash"])
    describe_decathlon(source, ["a1", "b", "c"], channels=2)
    clean = type(workspace).below(tmp_path / "clean", input_roots=(str(tmp_path),))
    assert register_dataset(clean, source, holdout_fraction=0.0)["hash"] == manifest["hash"]


@pytest.mark.parametrize("policy", ["keep", "drop", "fail"])
def test_the_next_registrations_leave_it_out_whatever_the_policy_for_gone_cases(tmp_path, workspace, policy):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    take_out(workspace, "b")
    before = tree(Path(workspace.raw) / NAME)
    again = register_dataset(workspace, source, holdout_fraction=0.0, on_removed=policy)
    assert (again["withdrawn"], again["train"], again["added"], again["already_done"]) == (1, 2, 0, True)
    assert tree(Path(workspace.raw) / NAME) == before
    decathlon(source, ["d"], first_seed=40)
    describe_decathlon(source, ["a", "b", "c", "d"])
    grown = register_dataset(workspace, source, holdout_fraction=0.0, on_removed=policy, holdout_cases=["b"])
    assert (grown["added"], grown["withdrawn"], grown["train"]) == (1, 1, 3)
    assert present(workspace, "b_0000") == []


def test_nothing_of_the_case_stays_in_hidden_state(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["x_a", "x_b", "x_c"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    state = Path(workspace.raw) / ".state"
    registered = Path(workspace.raw) / NAME / "imagesTr" / "x_b_0000.nii.gz"
    (state / "dicom" / "x").mkdir(parents=True)
    shutil.copy(registered, state / "dicom" / "x" / "0123.nii.gz")
    shutil.copy(Path(workspace.raw) / NAME / "labelsTr" / "x_b.nii.gz", state / "dicom" / "x" / "4567.nii.gz")
    (state / "dicom" / "x" / "other.nii.gz").write_bytes(b"of another case")
    (state / f"{NAME}.summaries.json").write_text('{"x_b": {}}')
    private = Path(workspace.raw) / ".private"
    private.mkdir(mode=0o700)
    lines = [json.dumps({"case": case, "patient": f"PATIENT OF {case}"}) + "\n" for case in ("x_a", "x_b")]
    (private / f"{NAME}.jsonl").write_text("".join(lines))
    (private / f"{NAME}.jsonl").chmod(0o600)
    for number, text in (("1", "slices of x_a and x_b"), ("2", "slices of x_a")):
        (Path(workspace.jobs) / number).mkdir()
        (Path(workspace.jobs) / number / "report.html").write_text(text)
        write_json(Path(workspace.jobs) / number / "spec.json", {"params": {"dataset_id": 4, "name": "Small"}})
    staging = Path(workspace.raw) / f".{NAME}.staging" / "imagesTr"
    staging.mkdir(parents=True)
    shutil.copy(registered, staging / "x_b_0000.nii.gz")
    take_out(workspace, "x_b")
    assert present(workspace, "x_b") == []
    assert [path.parent.name for path in Path(workspace.jobs).rglob("report.html")] == ["2"]
    assert sorted(path.name for path in (state / "dicom").rglob("*.nii.gz")) == ["other.nii.gz"]
    assert (private / f"{NAME}.jsonl").read_text() == lines[0]
    assert (private / f"{NAME}.jsonl").stat().st_mode & 0o777 == 0o600
    texts = {path.name: path.read_text() for path in Path(workspace.raw).rglob("*.json*")}
    assert sorted(name for name, text in texts.items() if "x_b" in text) == [f"{NAME}.withdrawn.json", "manifest.json"]
    assert list(workspace.manifest(NAME)["history"][-1]["cases"]) == ["withdrawn"]


def test_fault_withdrawn_a_copy_under_another_name_is_recognised_and_left_out(tmp_path, workspace, caplog):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    take_out(workspace, "b")
    for folder in ("imagesTr", "labelsTr"):
        shutil.move(source / folder / "b.nii.gz", source / folder / "renamed.nii.gz")
    describe_decathlon(source, ["a", "c", "renamed"])
    result = register_dataset(workspace, source, holdout_fraction=0.0)
    assert (result["withdrawn"], result["added"], result["train"]) == (1, 0, 2)
    assert "withdrawn [renamed]: has the image of a withdrawn case under another name" in caplog.text
    assert present(workspace, "renamed") == []
    shutil.copy(source / "imagesTr" / "renamed.nii.gz", source / "imagesTr" / "c.nii.gz")
    describe_decathlon(source, ["a", "c"])
    with pytest.raises(DataError, match=r"withdrawn \[c\]: now has the image of a withdrawn case"):
        register_dataset(workspace, source, holdout_fraction=0.0)


def test_reports_show_nothing_of_what_is_left_out(tmp_path, workspace):
    def report(**faults):
        with pytest.raises(DataError, **faults) if faults else contextlib.nullcontext():
            register_dataset(workspace, source, holdout_fraction=0.0)
        page = (Path(workspace.jobs) / "register-test" / "report.html").read_text()
        return page, set(re.findall(r"data:image/[^\"')]+", page))

    source = decathlon(tmp_path / "s", ["a", "of_anna", "c"])
    write_nifti(source / "labelsTr" / "of_anna.nii.gz", label_array((0,)))  # a warning of its own
    page, all_pictures = report()
    assert "of_anna" in page
    take_out(workspace, "of_anna")
    page, pictures = report()
    assert "of_anna" not in page
    assert pictures < all_pictures
    for folder in ("imagesTr", "labelsTr"):
        shutil.move(source / folder / "of_anna.nii.gz", source / folder / "re_named.nii.gz")
    describe_decathlon(source, ["a", "c", "re_named"])
    page, shown = report()
    assert ("re_named" in page, shown) == (False, pictures)
    shutil.copy(source / "imagesTr" / "re_named.nii.gz", source / "imagesTr" / "c.nii.gz")
    page, shown = report(match=r"withdrawn \[c\]: now has the image")
    assert ("re_named" in page, shown) == (False, pictures)
    assert len(json.loads((Path(workspace.raw) / ".state" / f"{NAME}.summaries.json").read_text())["summaries"]) == 2


def test_another_dataset_warns_of_the_image_and_the_withdrawal_names_it(tmp_path, workspace, caplog):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    register_dataset(workspace, source, dataset_id=5, name="Other", holdout_fraction=0.0)
    assert take_out(workspace, "b")["copies"] == [{"dataset": "Dataset005_Other", "case": "b"}]
    result = register_dataset(workspace, source, dataset_id=6, name="Third", holdout_fraction=0.0)
    assert (result["withdrawn"], result["train"]) == (0, 3)
    assert f"withdrawn [b]: has the image of a case that was withdrawn from {NAME}" in caplog.text


def test_a_patient_goes_with_all_cases_and_later_ones_stay_out(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["p1_a", "p1_b", "p2_a", "p3_a"])
    params = {"holdout_fraction": 0.0, "group_pattern": "(p[0-9]+)_"}
    register_dataset(workspace, source, **params)
    assert take_out(workspace, groups=["p1"])["cases"] == ["p1_a", "p1_b"]
    decathlon(source, ["p1_c", "p2_b"], first_seed=70)
    describe_decathlon(source, ["p1_a", "p1_b", "p1_c", "p2_a", "p2_b", "p3_a"])
    result = register_dataset(workspace, source, **params)
    assert (result["withdrawn"], result["added"]) == (3, 1)
    assert sorted(workspace.manifest(NAME)["cases"]) == ["p2_a", "p2_b", "p3_a"]
    assert "p1" not in Tombstones(workspace, NAME).groups
    take_out(workspace, groups=["p1"], restore=True)
    assert register_dataset(workspace, source, **params)["added"] == 3


def test_the_last_case_may_go_too(tmp_path, workspace):
    register_dataset(workspace, decathlon(tmp_path / "s", ["a", "b"], test=["t"]), holdout_fraction=0.0)
    take_out(workspace, "a", "b", "t")
    assert workspace.manifest(NAME)["cases"] == {}
    assert not list((Path(workspace.raw) / NAME).rglob("*.nii.gz"))


def test_what_is_not_there_is_named_with_the_nearest(tmp_path, workspace):
    register_dataset(workspace, decathlon(tmp_path / "s", ["scan_1", "scan_2"]), holdout_fraction=0.0)
    for params, words in (
        ({"cases": ["scan_3"]}, r"'scan_3' is not a case of Dataset004_Small; did you mean 'scan_2'\?"),
        ({"groups": ["scan_9"]}, "no case of Dataset004_Small is of 'scan_9'; did you mean 'scan_"),
        ({"cases": ["scan_1"], "restore": True}, "'scan_1' of Dataset004_Small are not withdrawn"),
        ({}, "name at least one case or group"),
        ({"cases": ["scan_1"], "reason": "two\nlines"}, "one line"),
    ):
        with pytest.raises(ConfigError, match=words):
            withdraw.run(WithdrawParams(dataset="4", **params), context(workspace, "withdraw"))
    assert sorted(workspace.manifest(NAME)["cases"]) == ["scan_1", "scan_2"]


def test_damaged_tombstones_stop_everything(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    take_out(workspace, "b")
    Tombstones(workspace, NAME).path.write_text("{")
    with pytest.raises(ConfigError, match=r"withdrawn\.json: is damaged .*restore it from a backup"):
        register_dataset(workspace, source, holdout_fraction=0.0)


def test_an_interrupted_withdrawal_is_named_and_carried_on_by_a_registration(tmp_path, workspace, caplog):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    stones = Tombstones(workspace, NAME)
    stones.cases["b"] = {"at": "2026-01-01", "by": {}, "reason": None, "group": "", "images": {}, "labels": {}, "complete": False}
    stones.save()
    result = register_dataset(workspace, source, holdout_fraction=0.0)
    assert (result["train"], result["withdrawn"], result["removed"]) == (2, 1, 0)
    assert "did not complete; run withdraw again for: b" in caplog.text
    assert present(workspace, "b_0000") == []
    assert workspace.manifest(NAME)["history"][-1]["cases"] == {"withdrawn": ["b"]}
    take_out(workspace, "b")
    assert Tombstones(workspace, NAME).incomplete() == []


def test_the_command_says_what_it_did(tmp_path, workspace):
    register_dataset(workspace, raw(tmp_path / "s", ["a", "b"]), holdout_fraction=0.0)
    write_json(tmp_path / "workspace.json", workspace.to_json())

    def command(*arguments, **options):
        words = [sys.executable, "-m", "nnunet_jobs", "withdraw", *arguments]
        return subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=120, env={"PYTHONPATH": ":".join(sys.path)}, **options
        )

    dry = command("--workspace-json", str(tmp_path / "workspace.json"), "4", "--case", "a", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert f"{NAME}: 1 cases would be withdrawn: a" in dry.stdout
    done = command("--workspace-json", "-", "4", "--case", "a", "--json", "--user", "dr.who", input=json.dumps(workspace.to_json()))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cases"] == ["a"]
    assert workspace.manifest(NAME)["history"][-1]["by"]["triggered_by"] == "dr.who"
    wrong = command("--workspace-json", "-", "4", "--case", "zz", input=json.dumps(workspace.to_json()))
    assert (wrong.returncode, wrong.stdout) == (3, "")
    assert "'zz' is not a case" in wrong.stderr
