"""Each registration leaves a report of the whole dataset in its job folder: after success, after faults, however little was read anew."""

import json
import re
from pathlib import Path

import pytest

from devtools.testbed.data import context, decathlon, describe_decathlon, label_array, register_dataset, write_nifti
from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.steps import register


def run(workspace, source, name, **params):
    """Register in a job of its own; returns the result and the report."""
    surroundings = context(workspace, name)
    result = register.run(RegisterParams(dataset_id=4, name="Small", source=str(source), **params), surroundings)
    return result, (surroundings.job.path / result["report"]).read_text()


def shown(page: str) -> list[str]:
    return sorted(re.findall(r"<figcaption><b>(.*?)</b>", page))


def store(workspace) -> Path:
    return Path(workspace.raw) / ".state" / "Dataset004_Small.summaries.json"


def test_a_registration_leaves_its_report_in_the_job_folder(tmp_path, workspace):
    result, page = run(workspace, decathlon(tmp_path / "s", ["a", "b", "c"], test=["t"]), "one", holdout_cases=["b"])
    assert result["report"] == "report.html"
    assert shown(page) == ["a", "b", "c", "t"]
    assert str(tmp_path) not in page
    assert re.search(r"<b>1</b> held out", page)
    assert re.search(r"<b>1</b> without a label", page)


def test_a_second_run_with_one_new_case_shows_all_and_reads_only_that(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b"])
    write_nifti(source / "labelsTr" / "a.nii.gz", label_array((0,)))
    _, first = run(workspace, source, "one")
    decathlon(source, ["c"], first_seed=7)
    describe_decathlon(source, ["a", "b", "c"])
    result, page = run(workspace, source, "two")
    assert result["added"] == 1
    assert shown(page) == ["a", "b", "c"]
    assert "label_empty" in first
    assert "label_empty" in page  # what the first run warned of is still so
    phases = [json.loads(line)["phase"] for line in (Path(workspace.jobs) / "two" / "metrics.jsonl").read_text().splitlines()]
    assert "summarise" not in phases
    again, same = run(workspace, source, "three")
    assert again["already_done"]
    assert shown(same) == ["a", "b", "c"]


def test_fault_59_the_report_is_there_when_the_dataset_is_refused(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b"])
    run(workspace, source, "one")
    kept = store(workspace).read_bytes()
    decathlon(source, ["c", "d"], first_seed=7)
    describe_decathlon(source, ["a", "b", "c", "d"])
    write_nifti(source / "labelsTr" / "c.nii.gz", label_array((0, 1, 7)))
    data = (source / "imagesTr" / "d.nii.gz").read_bytes()
    (source / "imagesTr" / "d.nii.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError):
        run(workspace, source, "two")
    page = (Path(workspace.jobs) / "two" / "report.html").read_text()
    assert shown(page) == ["a", "b", "c"]
    assert "value 7, not declared" in page
    for text in ("label_undeclared", "imagesTr/d.nii.gz", "Not usable: 2 errors in 2 cases"):
        assert text in page
    assert store(workspace).read_bytes() == kept


def test_a_source_without_a_readable_description_has_a_report_too(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a"])
    (source / "dataset.json").write_text("{")
    with pytest.raises(DataError):
        run(workspace, source, "one")
    assert "description_invalid" in (Path(workspace.jobs) / "one" / "report.html").read_text()


def test_lost_or_damaged_summaries_are_made_again(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b"])
    _, first = run(workspace, source, "one")
    kept = store(workspace).read_text()
    for number, damage in enumerate(["{", "[]", json.dumps({"version": 0, "summaries": {}}), None]):
        store(workspace).write_text(damage) if damage is not None else store(workspace).unlink()
        result, page = run(workspace, source, f"again{number}")
        assert result["already_done"]
        assert shown(page) == shown(first) == ["a", "b"]
        assert store(workspace).read_text() == kept


def test_summaries_of_cases_that_are_gone_are_forgotten(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    run(workspace, source, "one", holdout_fraction=0.0)
    describe_decathlon(source, ["a", "b"])
    _, page = run(workspace, source, "two", holdout_fraction=0.0, on_removed="drop")
    assert shown(page) == ["a", "b"]
    assert len(json.loads(store(workspace).read_text())["summaries"]) == 2


def test_a_report_that_cannot_be_written_stops_nothing(tmp_path, workspace, caplog):
    surroundings = context(workspace)
    (surroundings.job.path / "report.html").mkdir()
    result = register.run(RegisterParams(dataset_id=4, name="Small", source=str(decathlon(tmp_path / "s", ["a"]))), surroundings)
    assert (result["added"], result["report"]) == (1, None)
    assert "cannot be written" in caplog.text


def test_200_real_cases_make_a_report_below_a_megabyte(hippocampus, workspace):
    allowed = type(workspace)(**{**workspace.to_json(), "input_roots": (str(hippocampus),)})
    result = register_dataset(allowed, hippocampus, name="Hippocampus")
    page = (Path(workspace.jobs) / "register-test" / result["report"]).read_text()
    assert len(shown(page)) == 200
    assert len(page) < 1_000_000
    assert page.count("<path stroke=") > 390  # one slice shows one label only
