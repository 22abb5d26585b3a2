"""A CSV table of cases: what it may say, and how what is wrong with it is named by line."""

from pathlib import Path

import pytest

from devtools.testbed.data import LABELS, register_dataset
from nnunet_jobs.contract.failure import ConfigError, DataError
from support.layouts import scans, table

TABLES = {"mapping": "cases.csv", "channel_names": {"0": "T1"}, "label_names": LABELS}
TWO = {**TABLES, "channel_names": {"0": "T1", "1": "FLAIR"}}


def row(case: str, **more: str) -> dict[str, str]:
    return {"case": case, "image": f"scans/{case}/t1.nii.gz", "label": f"truth/{case}.nii.gz", **more}


def found(error: DataError) -> list[tuple[str, str | None, str]]:
    return [(fault.code, fault.case, fault.message.partition(":")[0]) for fault in error.faults]


def test_a_table_names_files_wherever_they_lie(tmp_path, workspace):
    rows = [row("a"), row("b"), {**row("t"), "label": ""}]
    source = scans(tmp_path / "s", rows)
    result = register_dataset(workspace, source, holdout_fraction=0.0, **TABLES)
    assert (result["train"], result["test"], result["added"]) == (2, 1, 3)
    assert (Path(result["path"]) / "labelsTr" / "a.nii.gz").read_bytes() == (source / "truth" / "a.nii.gz").read_bytes()
    assert register_dataset(workspace, source, holdout_fraction=0.0, **TABLES)["already_done"]


@pytest.mark.parametrize(("delimiter", "start"), [(";", "\ufeff"), ("\t", ""), (",", "\ufeff")])
def test_what_spreadsheet_programs_write(tmp_path, workspace, delimiter, start):
    source = scans(tmp_path / "s", [row("a"), row("b")])
    table(source, [row("a"), row("b")], delimiter=delimiter)
    path = source / "cases.csv"
    path.write_bytes((start + path.read_text().replace("case", "Case ", 1).replace("\n", "\r\n") + delimiter * 2 + "\r\n").encode())
    assert register_dataset(workspace, source, **TABLES)["added"] == 2


@pytest.mark.parametrize("columns", [("T1", "flair"), ("0", "1"), ("0000", "0001"), ("1", "0")])
def test_a_column_for_each_channel(tmp_path, workspace, columns):
    rows = [{"case": case, columns[0]: f"{case}/x.nii.gz", columns[1]: f"{case}/y.nii.gz", "label": f"{case}/z.nii.gz"} for case in "ab"]
    source = scans(tmp_path / "s", rows, images=columns)
    result = register_dataset(workspace, source, holdout_fraction=0.0, **TWO)
    first = "y" if columns == ("1", "0") else "x"
    assert (Path(result["path"]) / "imagesTr" / "a_0000.nii.gz").read_bytes() == (source / "a" / f"{first}.nii.gz").read_bytes()


def test_patients_and_splits_are_the_tables(tmp_path, workspace):
    rows = [row(f"c{n}", group=f"p{n // 2}", split="holdout" if n < 2 else "train") for n in range(12)]
    register_dataset(workspace, scans(tmp_path / "s", rows), **TABLES)
    cases = workspace.manifest("Dataset004_Small")["cases"]
    assert {case: (entry["group"], entry["split"]) for case, entry in cases.items()} == {
        r["case"]: (r["group"], r["split"]) for r in rows
    }  # fmt: skip


def test_training_cases_of_the_table_are_never_held_out_while_others_may_be(tmp_path, workspace):
    rows = [row(f"c{n:02d}", split="train" if n < 8 else "") for n in range(16)]
    register_dataset(workspace, scans(tmp_path / "s", rows), holdout_fraction=0.5, **TABLES)
    splits = {case: entry["split"] for case, entry in workspace.manifest("Dataset004_Small")["cases"].items()}
    assert all(splits[f"c{n:02d}"] == "train" for n in range(8))
    assert "holdout" in splits.values()


def test_a_patient_on_both_sides_is_named(tmp_path, workspace):
    rows = [row("a", group="p", split="train"), row("b", group="p", split="test"), row("c", group="q", split="train")]
    with pytest.raises(DataError, match=r"line 3: the patient is on the other side of the split in line 2"):
        register_dataset(workspace, scans(tmp_path / "s", rows), **TABLES)


def test_every_wrong_row_is_in_one_report_with_its_line(tmp_path, workspace):
    good = scans(tmp_path / "s", [row("a", split=""), row("b", split="")])
    lines = [
        "case,image,label,split",
        "a,scans/a/t1.nii.gz,truth/a.nii.gz,",
        "a,scans/a/t1.nii.gz,truth/a.nii.gz,",
        ",scans/a/t1.nii.gz,,",
        "c,,truth/a.nii.gz,",
        "d,scans/a/t1.nii.gz,truth/a.nii.gz,maybe",
        "e,scans/a/t1.nii.gz,,train",
        "f,scans/a/t1.nii.gz",
        "g,../out.nii.gz,/etc/passwd,",
        "h,scans/h.nii.gz,truth/a.doc,",
        "\"=cmd|' /C calc'!A0\",scans/b/t1.nii.gz,truth/b.nii.gz,",
        "",
        "i,scans/nowhere.nii.gz,truth/b.nii.gz,",
    ]
    (good / "cases.csv").write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, good, **TABLES)
    by_line = sorted((item for item in found(caught.value) if item[2].startswith("line ")), key=lambda item: int(item[2][5:]))
    assert by_line == [
        ("case_duplicate", "a", "line 3"),
        ("mapping_invalid", None, "line 4"),
        ("channel_missing", "c", "line 5"),
        ("mapping_invalid", "d", "line 6"),
        ("label_missing", "e", "line 7"),
        ("mapping_invalid", None, "line 8"),
        ("path_outside", "g", "line 9"),
        ("path_outside", "g", "line 9"),
        ("name_unmatched", "h", "line 10"),
    ]
    codes = {(fault.code, fault.case) for fault in caught.value.faults}
    assert ("name_invalid", "=cmd|' /C calc'!A0") in codes
    assert ("image_missing", "i") in codes
    assert workspace.datasets() == {}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"case,image\na,b.nii.gz\n", "line 1: has no column 'label'; the columns are case, image"),
        (b"case,label\na,b.nii.gz\n", r"needs a column for each channel: 'T1' \(or '0'\)"),
        (b"case,image,label,case\n", "has the column 'case' twice"),
        (b"case,t1,0,label\n", "has the columns 't1', '0' for one channel"),
        ("case,image,label\nä,b,c\n".encode("utf-16"), "is not UTF-8; save the table as 'CSV UTF-8'"),
        ("case,image,label\na,b,c\nä,b,c\n".encode("latin-1"), "line 3: is not UTF-8"),
        (b"case,image,label\n\0,b,c\n", "NUL"),
        (b'case,image,label\n"a,b,c\n', "is not readable as CSV"),
        (b"case,image,label\n" + b"x" * 200_000 + b",b,c\n", "cannot be read as CSV|not readable as CSV|more than 4096"),
        (b"case,image,label\n" + b"x" * 5000 + b",b,c\n", "line 2: has a cell of more than 4096 characters"),
        (b"x" * ((64 << 20) + 1), "larger than 64 MiB"),
    ],
)
def test_an_unusable_table_is_named(tmp_path, workspace, content, what):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "cases.csv").write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        register_dataset(workspace, tmp_path / "s", **TABLES)
    assert {fault.code for fault in caught.value.faults} == {"mapping_invalid"}
    assert {fault.file for fault in caught.value.faults} == {"cases.csv"}


def test_the_table_itself_must_lie_in_the_source(tmp_path, workspace):
    source = scans(tmp_path / "s", [row("a")])
    for mapping, what in (("../x.csv", r"'\.\.'"), ("/etc/passwd", "absolute"), ("none.csv", "no such file")):
        with pytest.raises(ConfigError, match=rf"mapping='{mapping}'.*{what}"):
            register_dataset(workspace, source, **{**TABLES, "mapping": mapping})
    with pytest.raises(ConfigError, match="mapping=None: must name the CSV file"):
        register_dataset(workspace, source, layout="csv")
    with pytest.raises(ConfigError, match=r"mapping='cases.csv'.*set layout to csv"):
        register_dataset(workspace, source, layout="folders", mapping="cases.csv")


def test_fault_52_a_link_in_a_table_that_leaves_the_source(tmp_path, workspace):
    source = scans(tmp_path / "s", [row("a"), row("b")])
    target = source / "scans" / "b" / "t1.nii.gz"
    target.rename(tmp_path / "elsewhere.nii.gz")
    target.symlink_to(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source, **TABLES)
    assert ("path_outside", "b") in {(fault.code, fault.case) for fault in caught.value.faults}
