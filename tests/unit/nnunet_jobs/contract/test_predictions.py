"""predictions.json: assembled, written and read by one module, whoever has predicted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.predictions import PREDICTIONS, entry, read_predictions, summarise, write_case_record, write_predictions

PLUGINS = Path(__file__).parents[4] / "plugins"


def test_counts_are_of_the_entries_that_count_and_all_cases_are_listed(tmp_path: Path) -> None:
    good = {"status": "predicted", "flags": ["empty"], "dice": {"head": 0.8}}
    failed, other = {"status": "failed", "reason": "truncated"}, {"status": "predicted", "model": "another"}
    facts = {"dataset": "Dataset004_Hip", "model": "m1", "predicted": 99, "cases": {"gone": {}}}
    write_predictions(tmp_path, summarise(facts, {"a": good, "b": failed, "c": other}, counted=[good, failed]))
    found = read_predictions(tmp_path)
    assert {name: found[name] for name in ("schema", "model", "predicted", "failed", "flagged")} == {
        "schema": 1, "model": "m1", "predicted": 1, "failed": 1, "flagged": 1,
    }  # fmt: skip
    assert found["dice"] == {"cases": 1, "mean": 0.8, "per_label": {"head": 0.8}}
    assert list(found["cases"]) == ["a", "b", "c"]


def test_keys_that_this_version_does_not_know_stay(tmp_path: Path) -> None:
    write_predictions(tmp_path, summarise({"model": "m1", "added_later": 1}, {}, counted=[]))
    write_predictions(tmp_path, summarise(read_predictions(tmp_path), {}, counted=[]))
    assert read_predictions(tmp_path)["added_later"] == 1


def test_what_is_missing_or_damaged_is_empty_and_what_cannot_be_read_is_so_unless_it_matters(tmp_path: Path) -> None:
    assert read_predictions(tmp_path, strict=True) == {}
    (tmp_path / PREDICTIONS).write_text("{")
    assert read_predictions(tmp_path, strict=True) == {}
    (tmp_path / PREDICTIONS).write_text("[]")
    assert read_predictions(tmp_path, strict=True) == {}
    (tmp_path / PREDICTIONS).unlink()
    (tmp_path / PREDICTIONS).mkdir()
    assert read_predictions(tmp_path) == {}
    with pytest.raises(IsADirectoryError):
        read_predictions(tmp_path, strict=True)


def test_a_cases_record_has_more_than_its_entry(tmp_path: Path) -> None:
    written = write_case_record(tmp_path, "a", {"status": "predicted", "file": "a.nii.gz", "files": {"a.nii.gz": "0" * 64}})
    assert read_json(tmp_path / ".cases" / "a.json") == written
    assert entry(written) == {"status": "predicted", "file": "a.nii.gz", "at": written["at"]}


def test_no_other_module_writes_or_parses_the_file() -> None:
    found = {
        str(path.relative_to(PLUGINS))
        for path in PLUGINS.rglob("*.py")
        if re.search(r"(read|write|load|dump)\w*\([^()]*(PREDICTIONS|predictions\.json)", path.read_text())
    }
    assert found == {"nnunet_jobs/contract/storage/predictions.py"}
