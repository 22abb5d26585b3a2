"""A splits_final.json that was put into nnUNet_raw by hand: used as it is, or refused with everything that is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.dataset.own_splits import splits_by_hand

CASES: dict[str, dict[str, Any]] = {
    **{case: {"split": "train", "group": case} for case in ("a", "b", "c.1")},
    "held": {"split": "holdout", "group": "held"},
}
GOOD = [{"train": ["b", "c.1"], "val": ["a"]}, {"train": ["a"], "val": ["b", "c.1"]}]


def judged(folder: Path, folds: Any, *, withdrawn: tuple[str, ...] = ()) -> Any:
    (folder / "splits_final.json").write_text(folds if isinstance(folds, str) else json.dumps(folds))
    return splits_by_hand(folder, CASES, withdrawn=withdrawn)


def test_good_splits_are_used_as_they_are(tmp_path: Path) -> None:
    assert judged(tmp_path, GOOD) == GOOD


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([{"train": ["a", "b"], "val": ["b"]}], r"fold 0: 'b' is in 'train' and in 'val'"),
        ([{"train": ["a", "nobody"], "val": ["b"]}], r"fold 0: 'nobody' is not in the dataset"),
        ([*GOOD, {"train": ["a", "held"], "val": ["b"]}], r"fold 2: 'held' is held out from training"),
        ([{"train": ["a"], "val": []}], r"fold 0: 'val' has no case"),
        ([{"train": ["a", "b"], "val": ["b"]}, {"train": ["x"], "val": ["held"]}], r"'b' is in .* \| fold 1: 'x' .* \| fold 1: 'held'"),
        ({"train": ["a"]}, r"must be a list of folds"),
        ([{"train": "a", "val": ["b"]}], r"fold 0 must be"),
        ("[{", r"splits_final.json: cannot be used.*remove it, so that splits are made"),
    ],
)
def test_splits_that_cannot_be_used_are_refused_by_name(tmp_path: Path, folds: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        judged(tmp_path, folds)


def test_withdrawn_cases_go_and_cases_without_a_fold_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert judged(tmp_path, [{"train": ["a", "gone"], "val": ["b"]}] * 2, withdrawn=("gone",)) == [{"train": ["a"], "val": ["b"]}] * 2
    assert "names 1 training cases on neither side, such as c.1" in caplog.text
    assert "'b' validated by several folds" in caplog.text
