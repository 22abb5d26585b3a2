"""The source's own ``splits_final.json``: carried into the dataset for preprocessing, or refused by name; never left behind silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from devtools.testbed.data import context, decathlon, raw, register_dataset
from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.contract.storage.withdrawals import WithdrawParams
from nnunet_jobs.steps import withdraw
from support.layouts import pack
from support.validating import report_of

DATASET = "Dataset004_Small"
SPLITS = [{"train": ["a", "b"], "val": ["c", "d"]}, {"train": ["c", "d"], "val": ["a", "b"]}]


def with_splits(source: Path, splits: Any = SPLITS) -> Path:
    (source / "splits_final.json").write_text(splits if isinstance(splits, str) else json.dumps(splits))
    return source


def registered(workspace) -> Any:
    return json.loads((workspace.raw_dataset(DATASET) / "splits_final.json").read_text())


@pytest.mark.parametrize("layout", [raw, decathlon])
def test_own_splits_are_carried(tmp_path, workspace, layout, caplog):
    caplog.set_level("INFO")
    source = with_splits(layout(tmp_path / "s", ["a", "b", "c", "d"]))
    first = register_dataset(workspace, source, holdout_fraction=0.0)
    assert registered(workspace) == SPLITS
    assert "2 folds are the source's own (splits_final.json)" in caplog.text
    assert register_dataset(workspace, source, holdout_fraction=0.0)["already_done"]
    with_splits(source, [SPLITS[1], SPLITS[0]])
    again = register_dataset(workspace, source, holdout_fraction=0.0)
    assert (again["already_done"], again["hash"]) == (False, first["hash"])
    assert registered(workspace) == [SPLITS[1], SPLITS[0]]
    assert "own_splits" in workspace.manifest(DATASET)["history"][-1]["settings"]


def test_own_splits_of_an_archive(tmp_path, workspace):
    archive = pack(tmp_path / "s.tar.gz", with_splits(raw(tmp_path / "s", ["a", "b", "c", "d"])))
    register_dataset(workspace, archive, holdout_fraction=0.0)
    assert registered(workspace) == SPLITS


def test_they_outlive_a_source_that_brings_new_cases_only(tmp_path, workspace):
    register_dataset(workspace, with_splits(raw(tmp_path / "s", ["a", "b", "c", "d"])), holdout_fraction=0.0)
    register_dataset(workspace, raw(tmp_path / "t", ["e"]), holdout_fraction=0.0)
    assert registered(workspace) == SPLITS


def test_ids_follow_when_cases_are_renamed(tmp_path, workspace):
    splits = [{"train": ["a 1", "b"], "val": ["c", "d"]}]
    register_dataset(workspace, with_splits(raw(tmp_path / "s", ["a 1", "b", "c", "d"]), splits), rename=True, holdout_fraction=0.0)
    [fold] = registered(workspace)
    renamed = next(case for case in workspace.manifest(DATASET)["cases"] if case.startswith("a_1-"))
    assert fold == {"train": [renamed, "b"], "val": ["c", "d"]}


def test_holdout_and_withdrawn_and_dropped_cases_leave_the_folds(tmp_path, workspace):
    source = with_splits(raw(tmp_path / "s", ["a", "b", "c", "d", "e"]), [{"train": ["a", "b", "e"], "val": ["c", "d"]}])
    register_dataset(workspace, source, holdout_fraction=0.0, holdout_cases=["e"])
    assert registered(workspace) == [{"train": ["a", "b"], "val": ["c", "d"]}]
    withdraw.run(WithdrawParams(dataset="4", cases=["d"]), context(workspace, "withdraw"))
    assert registered(workspace) == [{"train": ["a", "b"], "val": ["c"]}]
    register_dataset(workspace, source, holdout_fraction=0.0, holdout_cases=["e"])  # which names the withdrawn case still
    assert registered(workspace) == [{"train": ["a", "b"], "val": ["c"]}]
    (source / "splits_final.json").unlink()
    for path in (source / "imagesTr" / "a_0000.nii.gz", source / "labelsTr" / "a.nii.gz"):
        path.unlink()
    register_dataset(workspace, source, holdout_fraction=0.0, on_removed="drop")
    assert registered(workspace) == [{"train": ["b"], "val": ["c"]}]


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ([{"train": ["a", "b", "c"], "val": ["c", "d"]}], "fold 0: 'c' is in 'train' and in 'val'"),
        ([SPLITS[0], {"train": ["a", "nobody"], "val": ["c", "other"]}], "fold 1: 'nobody', 'other' are not in the dataset"),
        ([{"train": ["a", "a"], "val": ["b"]}], "fold 0: 'a' is in 'train' more than once"),
        ([{"train": ["a"], "val": []}], "fold 0: 'val' has no case"),
        ([{"train": ["a"]}], "fold 0 must be"),
        ([["a", "b"]], "fold 0 must be"),
        ([{"train": "a", "val": ["b"]}], "fold 0 must be"),
        ([{"train": ["a", 3], "val": ["b"]}], "fold 0 must be"),
        ([], "it must be a list of folds"),
        ({"train": ["a"], "val": ["b"]}, "it must be a list of folds"),
        ("not JSON", "cannot be used"),
        ("[" * 100_000, "cannot be used"),
    ],
)
def test_splits_that_cannot_be_used_are_refused_by_name(tmp_path, workspace, capsys, splits, said):
    source = with_splits(raw(tmp_path / "s", ["a", "b", "c", "d"]), splits)
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source, holdout_fraction=0.0)
    [fault] = caught.value.faults
    assert (fault.code, fault.file) == ("splits_invalid", "splits_final.json")
    assert said in fault.message
    assert workspace.datasets() == {}
    _, report = report_of(capsys, source, "--holdout-fraction", "0")
    assert [found["message"] for found in report["faults"]] == [fault.message]


def test_a_side_that_the_holdout_empties_is_refused(tmp_path, workspace, capsys):
    source = with_splits(raw(tmp_path / "s", ["a", "b", "c", "d"]))
    with pytest.raises(DataError, match="fold 0: no case is left in 'val', since 'c', 'd' are hold-out or withdrawn"):
        register_dataset(workspace, source, holdout_cases=["c", "d"])
    assert report_of(capsys, source, "--holdout-cases", '["c", "d"]')[0] == 3


def test_a_test_image_in_a_fold_is_refused(tmp_path, workspace):
    source = with_splits(decathlon(tmp_path / "s", ["a", "b"], test=["t"]), [{"train": ["a", "t"], "val": ["b"]}])
    with pytest.raises(DataError, match="'t' is test images without a label"):
        register_dataset(workspace, source, holdout_fraction=0.0)


def test_what_a_person_should_know_is_a_warning(tmp_path, workspace, capsys, caplog):
    source = with_splits(raw(tmp_path / "s", ["p1_a", "p1_b", "p2_a", "p2_b"]), [{"train": ["p1_a", "p2_a"], "val": ["p1_b", "p2_b"]}])
    status, report = report_of(capsys, source, "--group-pattern", "(p.)", "--holdout-fraction", "0")
    assert (status, [fault["severity"] for fault in report["faults"]]) == (0, ["warning"])
    assert "patients in training and validation of one fold" in report["faults"][0]["message"]
    (source / "splits_final.json").rename(source / "splits_final.pkl")
    status, report = report_of(capsys, source)
    assert (status, [(fault["code"], fault["file"]) for fault in report["faults"]]) == (0, [("splits_invalid", "splits_final.pkl")])
    with_splits(source, [{"train": ["p1_a"], "val": ["p2_a"]}])
    register_dataset(workspace, source, holdout_fraction=0.0)
    assert "names no fold for 2 training cases; preprocessing distributes them: ['p1_b', 'p2_b']" in caplog.text


def test_a_file_that_a_person_put_into_the_dataset_stays(tmp_path, workspace):
    source = raw(tmp_path / "s", ["a", "b", "c", "d"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    with_splits(workspace.raw_dataset(DATASET))
    register_dataset(workspace, raw(tmp_path / "t", ["e"]), holdout_fraction=0.0)
    assert registered(workspace) == SPLITS
