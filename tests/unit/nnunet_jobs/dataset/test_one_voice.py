"""The validator and registration give one verdict on every source, and with ``--json`` there is a report for each of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devtools.testbed.data import LABELS, decathlon, image_array, raw, register_dataset, write_nifti
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import FailureClass, JobError
from support.layouts import bids, nnunet_v1, scans
from support.validating import report_of, validate

IMAGE, LABEL = "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"
VERDICTS = {None: Exit.DONE, FailureClass.DATA: Exit.REFUSED, FailureClass.CONFIG: Exit.USAGE}


def circle(path: Path) -> None:
    """A link to itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def options(params: dict[str, Any]) -> list[str]:
    found = []
    for name, value in params.items():
        text = value if isinstance(value, str) else json.dumps(value)
        found += [f"--{name.replace('_', '-')}"] + ([] if value is True else [text])
    return found


def verdict(capsys, workspace, source: Path, **params: Any) -> tuple[str | None, set[tuple[str, str | None]]]:
    """Failure class and errors (code and file), which must be the same from both."""
    status, report = report_of(capsys, source, *options(params))
    said = {(fault["code"], fault["file"]) for fault in report["faults"] if fault["severity"] == "error"}
    error = refusal(workspace, source, **params)
    assert status == VERDICTS[error.failure_class if error else None], (report, error)
    if error and error.failure_class == FailureClass.DATA:
        assert {(str(fault.code), fault.file) for fault in error.faults} == said
    return str(error.failure_class) if error else None, said


def refusal(workspace, source: Path, **params: Any) -> JobError | None:
    try:
        register_dataset(workspace, source, **params)
    except JobError as error:
        return error
    return None


def changed(**fields: Any) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        path = source / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda source: (source / name).write_bytes(content if isinstance(content, bytes) else content.encode()) and None


def only_test_images(source: Path) -> None:
    shutil.rmtree(source / "labelsTr")
    (source / "imagesTr").rename(source / "imagesTs")
    for folder in ("imagesTr", "labelsTr"):
        (source / folder).mkdir()


def dangling(source: Path) -> None:
    (source / IMAGE).unlink()
    (source / IMAGE).symlink_to("nothing.nii.gz")


def folder_for_description(source: Path) -> None:
    (source / "dataset.json").unlink()
    (source / "dataset.json").mkdir()


REGIONS = {"background": 0, "whole": [1, 2], "back": 2}
BROKEN: dict[str, tuple[Callable[[Path], None], set[tuple[str, str | None]]]] = {
    "no label at all": (only_test_images, {("no_training_case", None)}),
    "images in a circle": (lambda source: circle(source / "imagesTr"), {("image_missing", "imagesTr")}),
    "labels in a circle": (lambda source: circle(source / "labelsTr"), {("image_missing", "labelsTr")}),
    "test images in a circle": (lambda source: circle(source / "imagesTs"), {("image_missing", "imagesTs")}),
    "an image in a circle": (lambda source: circle(source / IMAGE), {("image_missing", IMAGE)}),
    "a label in a circle": (lambda source: circle(source / LABEL), {("label_missing", LABEL)}),
    "a stray in a circle": (lambda source: circle(source / "imagesTr" / "zz"), {("name_unmatched", "imagesTr/zz")}),
    "a description in a circle": (lambda source: circle(source / "dataset.json"), {("description_invalid", "dataset.json")}),
    "splits in a circle": (lambda source: circle(source / "splits_final.json"), {("splits_invalid", "splits_final.json")}),
    "a link to nothing": (dangling, {("image_missing", IMAGE)}),
    "a folder for a description": (folder_for_description, {("description_invalid", "dataset.json")}),
    "a list for a description": (written("dataset.json", "[]"), {("description_invalid", "dataset.json")}),
    "bytes for a description": (written("dataset.json", b"\xff\xfe\x00"), {("description_invalid", "dataset.json")}),
    "deep JSON": (written("dataset.json", "[" * 100_000), {("description_invalid", "dataset.json")}),
    "an ending without its dot": (changed(file_ending="nii.gz"), {("ending_unsupported", "dataset.json")}),
    "an ending that nobody reads": (changed(file_ending=".jpg"), {("ending_unsupported", "dataset.json")}),
    "an ending in capital letters": (changed(file_ending=".NII.GZ"), {("ending_unsupported", "dataset.json")}),
    "a number for an ending": (changed(file_ending=3), {("ending_unsupported", "dataset.json")}),
    "labels that are none": (changed(labels={"background": 0, "a": {"b": 1}}), {("labels_invalid", "dataset.json")}),
    "nothing but background": (changed(labels={"background": 0}), {("labels_invalid", "dataset.json")}),
    "no background": (changed(labels={"front": 1, "back": 2}), {("background_missing", "dataset.json")}),
    "a number for an order": (changed(labels=REGIONS, regions_class_order=3), {("regions_order_invalid", "dataset.json")}),
    "lists in an order": (changed(labels=REGIONS, regions_class_order=[[1], [2]]), {("regions_order_invalid", "dataset.json")}),
    "an order that loses a region": (changed(labels=REGIONS, regions_class_order=[2, 2]), {("regions_order_invalid", "dataset.json")}),
    "channels that are a list": (changed(channel_names=["CT"]), {("labels_invalid", "dataset.json")}),
    "an empty list of cases": (changed(dataset={}), {("no_cases", None)}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_validator_and_registration_refuse_with_the_same_words(tmp_path, workspace, capsys, what):
    build, expected = BROKEN[what]
    source = raw(tmp_path / "s", ["a", "b"])
    build(source)
    assert verdict(capsys, workspace, source) == ("data", expected)


@pytest.mark.parametrize("name", ["circle", "nothing", "a\0b", "x" * 300, "file.txt", "pipe", "circle.zip", "pipe.zip", "empty"])
def test_a_path_that_is_no_source_has_a_report_too(tmp_path, workspace, capsys, name):
    if name.startswith("circle"):
        circle(tmp_path / name)
    elif name.startswith("pipe"):
        os.mkfifo(tmp_path / name)
    elif name == "file.txt":
        (tmp_path / name).write_text("no dataset")
    elif name == "empty":
        (tmp_path / name).mkdir()
    assert verdict(capsys, workspace, tmp_path / name) == ("config", {("config", None)})


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"group_pattern": "(x)"}, "data"),
        ({"holdout_cases": ["z"]}, "config"),
        ({"holdout_cases": ["a", "b"]}, "data"),
        ({"holdout_cases": ["a"]}, None),
        ({"holdout_fraction": 0.0}, None),
        ({"layout": "csv"}, "config"),
        ({"series": [1]}, "config"),
    ],
)
def test_fields_of_registration_are_judged_by_both(tmp_path, workspace, capsys, params, expected):
    if "series" in params:  # registration's own form refuses what is no object
        assert report_of(capsys, raw(tmp_path / "s", ["a", "b"]), *options(params))[0] == Exit.USAGE
        return
    assert verdict(capsys, workspace, raw(tmp_path / "s", ["a", "b"]), **params)[0] == expected


def test_ids_that_registration_would_rename(tmp_path, workspace, capsys):
    source = raw(tmp_path / "s", ["a b", "c"])
    assert verdict(capsys, workspace, source)[0] == "data"
    assert verdict(capsys, workspace, source, rename=True)[0] is None


def test_circles_in_other_layouts(tmp_path, workspace, capsys):
    subjects = bids(tmp_path / "bids", ["1", "2"])
    circle(subjects / "sub-9")
    assert verdict(capsys, workspace, subjects) == ("data", {("image_missing", "sub-9")})
    labels = bids(tmp_path / "labels", ["1", "2"])
    circle(labels / "derivatives" / "manual" / "sub-1")
    assert verdict(capsys, workspace, labels) == ("data", {("image_missing", "derivatives/manual/sub-1")})
    first = nnunet_v1(tmp_path / "Task004_Small", ["a", "b"])
    circle(first / "imagesTr" / "a_0000.nii.gz")
    assert verdict(capsys, workspace, first) == ("data", {("image_missing", "imagesTr/a_0000.nii.gz")})
    listed = decathlon(tmp_path / "d", ["a", "b"])
    circle(listed / "imagesTr" / "a.nii.gz")
    assert verdict(capsys, workspace, listed) == ("data", {("image_missing", "imagesTr/a.nii.gz")})


@pytest.mark.parametrize("split", ["holdout", "test"])
def test_a_table_without_a_training_case(tmp_path, workspace, capsys, split):
    rows = [{"case": case, "image": f"i/{case}.nii.gz", "label": f"l/{case}.nii.gz", "split": split} for case in "ab"]
    params = {"mapping": "cases.csv", "channel_names": {"0": "T1"}, "label_names": LABELS}
    assert verdict(capsys, workspace, scans(tmp_path / "csv", rows), **params) == ("data", {("no_training_case", None)})


def test_the_command_itself_prints_json_for_what_is_no_dataset(tmp_path):
    circle(tmp_path / "circle")
    for arguments in ([tmp_path / "circle"], [tmp_path], [raw(tmp_path / "s", ["a", "b"]), "--label-names", "{"]):
        done = validate(*arguments, "--json")
        assert done.returncode == Exit.USAGE
        report = json.loads(done.stdout)
        assert (report["ok"], [fault["code"] for fault in report["faults"]]) == (False, ["config"])
        assert report["faults"][0]["message"] in done.stderr
        assert "Traceback" not in done.stderr


# --- one fault for one cause ------------------------------------------------------------------------------------------
def test_a_key_that_stands_twice_is_named_with_both_values(tmp_path, workspace, capsys):
    source = raw(tmp_path / "s", ["a", "b"])
    text = json.dumps({"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    for labels, said in (
        ('{"background": 0, "a": 2, "a": 1}', "'a' is there twice, as 2 and as 1"),
        ('{"background": 0, "a": 1, "ignore": 2, "ignore": 3}', "'ignore' is there twice, as 2 and as 3"),
    ):
        (source / "dataset.json").write_text(f'{text[:-1]}, "labels": {labels}}}')
        _, report = report_of(capsys, source)
        assert [fault["code"] for fault in report["faults"]] == ["description_invalid"]
        assert said in report["faults"][0]["message"]
    (source / "dataset.json").write_text(f'{text[:-1]}, "labels": {json.dumps(LABELS)}, "name": "x", "name": "x"}}')
    assert verdict(capsys, workspace, source) == (None, set())


def test_labels_with_a_channel_number_are_one_fault_each(tmp_path, workspace, capsys):
    source = raw(tmp_path / "s", ["a", "b"])
    for case in "ab":
        (source / "labelsTr" / f"{case}.nii.gz").rename(source / "labelsTr" / f"{case}_0000.nii.gz")
    _, report = report_of(capsys, source)
    assert [(fault["code"], fault["case"], fault["file"]) for fault in report["faults"]] == [
        ("name_unmatched", case, f"labelsTr/{case}_0000.nii.gz") for case in "ab"
    ]
    assert "labels have no channel number; rename it to a.nii.gz" in report["faults"][0]["message"]


def test_a_case_may_be_called_as_a_channel_is(tmp_path, workspace, capsys):
    assert verdict(capsys, workspace, raw(tmp_path / "s", ["a", "a_0000"])) == (None, set())


@pytest.mark.parametrize(("name", "said"), [("a_0000.jpg", ".jpg"), ("a_0000.nii.bz2", ".nii.bz2"), ("a_0000.NII.GZ", ".NII.GZ")])
def test_an_ending_that_nobody_reads_is_to_be_converted_not_renamed(tmp_path, capsys, name, said):
    source = raw(tmp_path / "s", ["a", "b", "c"])
    (source / IMAGE).rename(source / "imagesTr" / name)
    _, report = report_of(capsys, source)
    [fault] = report["faults"]  # nothing more of the label that has lost its image
    assert (fault["code"], fault["case"], fault["file"]) == ("ending_unsupported", "a", f"imagesTr/{name}")
    assert f"ends in {said}, which no reader of nnU-Net reads; convert it to .nii.gz, renaming is not enough" in fault["message"]


def test_the_label_of_an_image_with_another_ending_is_no_second_fault(tmp_path, capsys):
    source = raw(tmp_path / "s", ["a", "b", "c"])
    (source / IMAGE).unlink()
    write_nifti(source / "imagesTr" / "a_0000.nii", image_array(0))
    _, report = report_of(capsys, source)
    assert [(fault["code"], fault["file"]) for fault in report["faults"]] == [("ending_mixed", "imagesTr/a_0000.nii")]


# --- ids with dots ----------------------------------------------------------------------------------------------------
DOTTED = ["sub.001", "sub.002", "a.nii.b", "c.0000"]


@pytest.mark.parametrize("layout", ["nnunet", "decathlon", "nnunet_v1", "folders", "csv"])
def test_ids_with_dots_are_not_cut(tmp_path, workspace, capsys, layout):
    params: dict[str, Any] = {"holdout_fraction": 0.0}
    if layout == "csv":
        rows = [{"case": case, "image": f"i/{case}.nii.gz", "label": f"l/{case}.nii.gz"} for case in DOTTED]
        source = scans(tmp_path / "s", rows)
        params |= {"mapping": "cases.csv", "channel_names": {"0": "T1"}, "label_names": LABELS}
    elif layout == "folders":
        source = raw(tmp_path / "s", DOTTED)
        (source / "dataset.json").unlink()
        params |= {"images": "imagesTr", "labels": "labelsTr", "channel_names": {"0": "T1"}, "label_names": LABELS}
    else:
        source = {"nnunet": raw, "decathlon": decathlon, "nnunet_v1": nnunet_v1}[layout](tmp_path / "s", DOTTED)
    assert verdict(capsys, workspace, source, **params) == (None, set())
    assert set(workspace.manifest("Dataset004_Small")["cases"]) == set(DOTTED)
    present = {path.name for path in (workspace.raw_dataset("Dataset004_Small") / "labelsTr").iterdir()}
    assert present == {f"{case}.nii.gz" for case in DOTTED}
