"""Renaming: ids that cannot be carried get safe ones, the same forever, and who is who stays in one file for few eyes."""

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devtools.testbed.data import LABELS, decathlon, describe_decathlon, image_array, label_array, register_dataset, write_nifti
from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.dataset.names import usable
from nnunet_jobs.dataset.renaming import CaseNames, safe_id
from support.layouts import scans

HOSTILE = ["Müller 3", ";$(id)", "x" * 130, "trailing.", "bär", "-rf", "病人", "a`b`", "CON.", "&amp;|"]


def names_file(workspace) -> Path:
    return Path(workspace.raw) / ".state" / "Dataset004_Small.names.csv"


def cases(workspace) -> dict:
    return workspace.manifest("Dataset004_Small")["cases"]


def long_decathlon(root: Path, ids: list[str]) -> Path:
    """Ids too long or too strange for file names stand in a table."""
    return scans(root, [{"case": case, "image": f"x/{n}.nii.gz", "label": f"y/{n}.nii.gz"} for n, case in enumerate(ids)])


TABLE = {"mapping": "cases.csv", "channel_names": {"0": "T1"}, "label_names": LABELS}


def test_fault_53_without_rename_they_are_refused_and_the_mend_is_named(tmp_path, workspace):
    source = long_decathlon(tmp_path / "s", ["good", *HOSTILE])
    with pytest.raises(DataError, match="set rename: true") as caught:
        register_dataset(workspace, source, **TABLE)
    assert {fault.case for fault in caught.value.faults} == set(HOSTILE)
    assert not names_file(workspace).exists()


def test_fault_53_with_rename_each_gets_a_safe_id(tmp_path, workspace):
    source = long_decathlon(tmp_path / "s", ["good", *HOSTILE])
    result = register_dataset(workspace, source, rename=True, holdout_fraction=0.0, **TABLE)
    assert result["added"] == 1 + len(HOSTILE)
    registered = cases(workspace)
    assert set(registered) == {"good", *map(safe_id, HOSTILE)}
    assert safe_id("Müller 3").startswith("Muller_3-")
    assert {entry["group"] for entry in registered.values()} == set(registered)
    assert not any(name in "".join(map(str, Path(result["path"]).rglob("*"))) for name in ("ü", "$", " ", "病"))
    assert register_dataset(workspace, source, rename=True, holdout_fraction=0.0, **TABLE)["already_done"]


def test_the_file_that_says_who_is_who_is_for_its_owner(tmp_path, workspace):
    register_dataset(workspace, long_decathlon(tmp_path / "s", ["b", "Müller 3", "=1+1"]), rename=True, **TABLE)
    path = names_file(workspace)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == f'id,original\n{safe_id("=1+1")},"""=1+1"""\n{safe_id("Müller 3")},"""Müller 3"""\n'
    assert list(path.parent.glob(".*names*")) == []


def test_ids_stay_as_the_data_grows_and_rows_are_appended(tmp_path, workspace):
    ids = ["z 1", "a", "m 2"]
    register_dataset(workspace, long_decathlon(tmp_path / "s", ids), rename=True, holdout_fraction=0.0, **TABLE)
    before, rows = set(cases(workspace)), names_file(workspace).read_text()
    grown = register_dataset(workspace, long_decathlon(tmp_path / "s", [*ids, "b 0", "q"]), rename=True, holdout_fraction=0.0, **TABLE)
    assert (grown["added"], grown["changed"]) == (2, 0)
    assert before < set(cases(workspace))
    assert names_file(workspace).read_text().startswith(rows)
    with pytest.raises(DataError, match="name_invalid"):
        register_dataset(workspace, tmp_path / "s", **TABLE)


def test_ids_that_clash_are_told_apart_whatever_comes_first(tmp_path, workspace):
    for number, ids in ((5, ["case", "Case", "x"]), (6, ["x", "Case", "case"])):
        register_dataset(workspace, long_decathlon(tmp_path / str(number), ids), rename=True, dataset_id=number, **TABLE)
        found = workspace.manifest(f"Dataset00{number}_Small")["cases"]
        assert set(found) == {"x", safe_id("case"), safe_id("Case")}


@pytest.mark.parametrize("on_removed", ["keep", "drop"])
def test_a_registered_id_stays_when_a_later_one_clashes_with_it(tmp_path, workspace, on_removed):
    register_dataset(workspace, long_decathlon(tmp_path / "s", ["case", "x"]), rename=True, holdout_fraction=0.0, **TABLE)
    for added in (1, 0):
        source = long_decathlon(tmp_path / "s", ["case", "x", "CASE"])
        result = register_dataset(workspace, source, rename=True, holdout_fraction=0.0, on_removed=on_removed, **TABLE)
        assert (result["added"], result["removed"], result["already_done"]) == (added, 0, not added)
        assert set(cases(workspace)) == {"case", "x", safe_id("CASE")}


def test_patterns_and_holdout_mean_the_sources_own_ids(tmp_path, workspace):
    ids = [f"Pat {n} scan {m}" for n in range(4) for m in range(2)]
    source = long_decathlon(tmp_path / "s", ids)
    params = {"rename": True, "group_pattern": r"^(Pat \d+) scan \d+$", "holdout_cases": ["Pat 1 scan 0"], "holdout_fraction": 0.0, **TABLE}
    result = register_dataset(workspace, source, **params)
    assert result["holdout"] == 2
    assert {entry["group"] for entry in cases(workspace).values()} == {safe_id(f"Pat {n}") for n in range(4)}
    assert register_dataset(workspace, source, **params)["already_done"]
    own = names_file(workspace)
    others = [path for path in Path(workspace.raw).rglob("*") if path.is_file() and path != own]
    assert len(others) > 10
    assert not [path for path in others if b"Pat 1" in path.read_bytes() or "Pat 1" in str(path)]


def test_channels_and_labels_are_matched_before_renaming(tmp_path, workspace):
    for number, case in enumerate(("Fall 1", "Fall 2")):
        for name in ("T1", "T2"):
            write_nifti(tmp_path / "s" / "images" / f"{case} {name}.nii.gz", image_array(number))
        write_nifti(tmp_path / "s" / "labels" / f"{case}.nii.gz", label_array())
    result = register_dataset(
        workspace, tmp_path / "s", rename=True, case_pattern=r"(?P<case>.+) (?P<channel>T\d)\.nii\.gz",
        channel_names={"0": "T1", "1": "T2"}, label_names=LABELS, holdout_fraction=0.0,
    )  # fmt: skip
    assert {path.name for path in Path(result["path"], "imagesTr").iterdir()} == {
        f"{safe_id(case)}_000{channel}.nii.gz" for case in ("Fall 1", "Fall 2") for channel in (0, 1)
    }
    for path in Path(workspace.raw).rglob("*"):  # the source's file names hold the original ids
        assert path == names_file(workspace) or not path.is_file() or b"Fall 1" not in path.read_bytes()


def test_faults_of_renamed_cases_come_once_and_say_which_case_is_meant(tmp_path, workspace):
    for case in ("Fall 1", "Fall 2"):
        for channel in range(3):
            write_nifti(tmp_path / "s" / "images" / f"{case}_000{channel}.nii.gz", image_array(channel))
        write_nifti(tmp_path / "s" / "labels" / f"{case}.nii.gz", label_array())
    (tmp_path / "s" / "images" / "Fall 2_0001.nii.gz").unlink()
    tables = {"channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}, "label_names": LABELS}
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, tmp_path / "s", rename=True, **tables)
    assert [(fault.code, fault.case, fault.file) for fault in caught.value.faults] == [
        ("channel_missing", safe_id("Fall 2"), "images/Fall 2_0001.nii.gz")  # the file's name says whose it is
    ]
    assert not names_file(workspace).exists()


def test_bytes_that_are_no_text_are_renamed_too(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a"])
    odd = os.fsdecode(b"M\xfcller")
    for folder in ("imagesTr", "labelsTr"):
        (source / folder / f"{odd}.nii.gz").write_bytes((source / folder / "a.nii.gz").read_bytes())
    describe_decathlon(source, ["a", odd])
    with pytest.raises(DataError, match="path_outside"):
        register_dataset(workspace, source, rename=True)  # a name that cannot be shown is not followed from a description
    result = register_dataset(
        workspace, source, layout="folders", images="imagesTr", labels="labelsTr", rename=True, label_names=LABELS, holdout_fraction=0.0
    )
    assert set(cases(workspace)) == {"a", safe_id(odd)}
    assert json.loads(names_file(workspace).read_text().splitlines()[1].partition(",")[2].strip('"').replace('""', '"').join('""')) == odd
    assert result["added"] == 2


def test_a_damaged_file_is_not_overwritten(tmp_path, workspace):
    source = long_decathlon(tmp_path / "s", ["a b", "c"])
    register_dataset(workspace, source, rename=True, **TABLE)
    for content in ("", "something,else\n", "id,original\nx\n", "id,original\nx,y\n"):
        names_file(workspace).write_text(content)
        with pytest.raises(ConfigError, match="restore it"):
            register_dataset(workspace, source, rename=True, **TABLE)
        assert names_file(workspace).read_text() == content


@given(st.text(min_size=1, max_size=200))
def test_a_safe_id_is_usable_and_always_the_same(original):
    assert usable(safe_id(original))
    assert safe_id(original) == safe_id(original)


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=20))
def test_different_ids_stay_different(originals):
    assert len({safe_id(original).casefold() for original in originals}) == len(originals)


@given(st.lists(st.text(alphabet=st.characters(), min_size=1, max_size=30), max_size=20))
def test_what_is_written_is_read_back(tmp_path_factory, originals):
    path = tmp_path_factory.mktemp("names") / "n.csv"
    names = CaseNames(path)
    names._ids = {original: safe_id(original) for original in originals}
    names.save()
    assert CaseNames(path)._ids == names._ids
