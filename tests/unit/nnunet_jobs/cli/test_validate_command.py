"""``python -m nnunet_jobs validate``: exit codes, JSON, the text, the plan, and the page that documents the codes."""

import json
from pathlib import Path

import pytest

from devtools.faults_docs import page
from devtools.testbed.data import LABELS, decathlon, image_array, label_array, raw, write_nifti
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.faults.fixes import FAULT_INFO
from support.validating import validate

PROJECT = Path(__file__).resolve().parents[4]


@pytest.fixture
def faulty(tmp_path) -> Path:
    source = raw(tmp_path / "s", ["a", "b", "c"])
    (source / "imagesTr" / "a_0000.nii.gz").write_bytes((source / "imagesTr" / "a_0000.nii.gz").read_bytes()[:-30])
    write_nifti(source / "labelsTr" / "b.nii.gz", label_array((0, 1, 7)))
    write_nifti(source / "labelsTr" / "c.nii.gz", label_array((0,)))
    return source


def test_a_usable_dataset_exits_0(tmp_path):
    done = validate(decathlon(tmp_path / "s", ["a", "b"]))
    assert (done.returncode, done.stdout.splitlines()[0].split(" (")[0]) == (0, "usable: 2 cases, layout decathlon, 0 errors, 0 warnings")
    assert "checked 2 of 2 cases" in done.stderr


def test_json_is_exactly_what_is_documented(faulty):
    done = validate(faulty, "--json", "--processes", 2)
    assert done.returncode == 3
    report = json.loads(done.stdout)
    assert list(report) == ["ok", "cases", "faults"]
    assert (report["ok"], report["cases"]) == (False, 3)
    assert all(list(fault) == ["code", "severity", "case", "file", "message"] for fault in report["faults"])
    assert [(fault["code"], fault["severity"], fault["case"], fault["file"]) for fault in report["faults"]] == [
        ("truncated", "error", "a", "imagesTr/a_0000.nii.gz"),
        ("label_undeclared", "error", "b", "labelsTr/b.nii.gz"),
        ("label_empty", "warning", "c", "labelsTr/c.nii.gz"),
    ]


def test_the_text_groups_all_faults(faulty):
    done = validate(faulty)
    assert done.returncode == 3
    assert done.stdout.startswith("NOT usable: 3 cases, layout nnunet, 2 errors, 1 warning")
    errors, warnings = done.stdout.split("\nWarnings\n")
    assert "truncated (1): The file ends before its data does." in errors
    assert "    a imagesTr/a_0000.nii.gz: gzip data ends early" in errors
    assert "    c labelsTr/c.nii.gz: holds background only" in warnings


def test_the_plan_says_what_to_do_with_which_file(faulty):
    lines = validate(faulty, "--fix-plan").stdout.splitlines()
    assert lines[0] == f"1. truncated (must be fixed): {FAULT_INFO[Code.TRUNCATED].fix}"
    assert lines[1].startswith("   [ ] a imagesTr/a_0000.nii.gz: ")
    assert any(line.startswith("3. label_empty (look at it)") for line in lines)


def test_wrong_usage_and_configuration_exit_2(tmp_path):
    source = decathlon(tmp_path / "s", ["a"])
    for arguments, said in (
        ([tmp_path / "nowhere"], "no such folder"),
        ([tmp_path], "layout not recognised"),
        ([source, "--label-names", "{"], "not JSON"),
        ([source, "--label-names", '{"x": 1}'], "'background'"),
        ([source, "--layout", "odd"], "layout"),
        ([source, "--processes", "0"], "must be more than 0"),
    ):
        done = validate(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert said in done.stderr


def test_folders_are_described_on_the_command_line(tmp_path):
    for case in ("p1", "p2"):
        write_nifti(tmp_path / "s" / "mr" / f"{case}-T1.nii.gz", image_array(1))
        write_nifti(tmp_path / "s" / "truth" / f"{case}.nii.gz", label_array())
    done = validate(
        tmp_path / "s", "--images", "mr", "--labels", "truth", "--case-pattern", r"(?P<case>p\d)-(?P<channel>T1)\.nii\.gz",
        "--channel-names", '{"0": "T1"}', "--label-names", json.dumps(LABELS),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_unusable_description_is_a_report_too(tmp_path):
    source = raw(tmp_path / "s", ["a"])
    (source / "dataset.json").write_text("{")
    done = validate(source, "--json")
    assert done.returncode == 3
    assert [fault["code"] for fault in json.loads(done.stdout)["faults"]] == ["description_invalid"]


def test_the_page_shows_every_case_and_fault(faulty, tmp_path):
    done = validate(faulty, "--html", tmp_path / "page.html")
    assert done.returncode == 3
    page = (tmp_path / "page.html").read_text()
    assert all(word in page for word in ("truncated", "label_undeclared", "label_empty", "imagesTr/a_0000.nii.gz", "<svg"))
    assert validate(faulty, "--html", tmp_path / "no" / "page.html").returncode == 2


def test_nothing_is_written(faulty):
    before = {path: path.stat().st_mtime_ns for path in faulty.rglob("*")}
    validate(faulty)
    assert {path: path.stat().st_mtime_ns for path in faulty.rglob("*")} == before


def test_every_code_has_its_mend_and_the_page_is_up_to_date():
    assert set(FAULT_INFO) == set(Code)
    assert (PROJECT / "docs" / "reference" / "faults.md").read_text() == page(), "python -m devtools.reference_docs"


def test_200_real_cases_are_usable(hippocampus):
    done = validate(hippocampus, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"ok": True, "cases": 200, "faults": []}
