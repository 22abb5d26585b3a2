"""Whatever lies in an input folder is predicted, or listed as not predicted with its reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devtools.testbed.serving import make_image, make_workspace
from devtools.testbed.stages import DATASET
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.incoming import Incoming, collect_cases
from support.batches import predict
from support.foreign_warnings import FOREIGN_WARNINGS

pytestmark = FOREIGN_WARNINGS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("incoming") / "work")


@pytest.fixture
def folder(home: Workspace, tmp_path: Path) -> Path:
    folder = Path(home.input_roots[0]) / tmp_path.name
    folder.mkdir()
    return folder


def collect(home: Workspace, folder: Path, *, ending: str = ".nii.gz", channels: int = 1, case_pattern: str | None = None) -> Incoming:
    folder = folder.resolve()
    return collect_cases(folder, workspace=home, dataset=DATASET, file_ending=ending, channels=channels, case_pattern=case_pattern)


def said(found: Incoming) -> dict[str, str]:
    """What is not predicted, with its reason."""
    return {item.case: item.problem for item in found.cases if item.problem} | {item.name: item.reason for item in found.not_predicted}


STRANGE = {
    "b.nii.gz": ("b", "no channel number"),
    "c_0000.nii": ("c", "convert it"),
    "d_0000.mha": ("d", "convert it"),
    "E_0000.NII.GZ": ("E", "upper case"),
    "f_0001.nii.gz": ("f", "channel 0000 is missing"),
    "g_0000.hdr": ("g", "convert it"),
    "a.nii": ("a.nii", "convert it"),  # the case a is there already
    "slice.dcm": ("slice.dcm", "DICOM"),
    "notes.txt": ("notes.txt", "not an image"),
    ".hidden_0000.nii.gz": (".hidden_0000.nii.gz", "hidden"),
}


def test_one_channel_that_cannot_be_used_costs_its_own_case_only(home: Workspace, folder: Path) -> None:
    """The other channel is no second case of the same id, for which the whole folder would be turned down."""
    for name in ("good_0000.nii.gz", "good_0001.nii.gz", "odd_0001.nii.gz"):
        make_image(folder / name)
    (folder / "odd_0000.nii.gz").symlink_to("nowhere")
    found = collect(home, folder, channels=2)
    assert [(item.case, item.problem is None) for item in found.cases] == [("good", True), ("odd", False)]
    told = said(found)
    assert "broken link" in told["odd"]
    assert "of which another file cannot be used" in told["odd_0001.nii.gz"]


def test_every_entry_of_a_folder_is_a_case_or_is_listed(home: Workspace, folder: Path) -> None:
    for name in ("a_0000.nii.gz", *STRANGE):
        (folder / name).write_bytes(b"x")
    (folder / "empty").mkdir()
    (folder / "more").mkdir()
    (folder / "more" / "z_0000.nii.gz").write_bytes(b"x")
    (folder / "gone_0000.nii.gz").symlink_to(folder / "nowhere.nii.gz")
    (folder / "away_0000.nii.gz").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe_0000.nii.gz")
    found = collect(home, folder)
    assert [case.case for case in found.cases if not case.problem] == ["a"]
    reasons = said(found)
    expected = {
        **dict(STRANGE.values()),
        "empty": "is a folder",
        "more": "1 .nii.gz files",
        "gone": "broken link",
        "away": "outside the allowed folders",
        "pipe_0000.nii.gz": "not a regular file",
    }
    assert {name: words in reasons.get(name, "") for name, words in expected.items()} == dict.fromkeys(expected, True)
    assert set(reasons) == set(expected)


def test_the_spacing_beside_a_3d_tiff_is_no_stray_file(home: Workspace, folder: Path) -> None:
    for name in ("a_0000.tif", "a.json", "b.json", "c.tif", "c.json"):
        (folder / name).write_bytes(b"{}")
    found = collect(home, folder, ending=".tif")
    assert said(found).keys() == {"b.json", "c"}
    listed = collect_cases([str(folder / "c.tif")], workspace=home, dataset=DATASET, file_ending=".tif", channels=1)
    assert "rename it to end in _0000.tif" in said(listed)["c"], "nnU-Net's reader would take 1 mm without a word"


def test_names_follow_a_pattern_as_at_registration(home: Workspace, folder: Path) -> None:
    for name in ("p1-T1.nii.gz", "p2-T1.nii.gz", "p1-1.nii.gz", "other.nii.gz"):
        (folder / name).write_bytes(b"x")
    found = collect(home, folder, case_pattern=r"(?P<case>p\d)-T1\.nii\.gz")
    assert [case.case for case in found.cases if not case.problem] == ["p1", "p2"]
    assert said(found).keys() == {"p1-1", "other"}
    two = collect(home, folder, channels=2, case_pattern=r"(?P<case>p\d)-T?(?P<channel>\d)\.nii\.gz")
    assert said(two)["p1"] == "channel 0000 is missing" or "twice" in " ".join(said(two).values())
    with pytest.raises(ConfigError, match="needs a named group"):
        predict(home, folder, folder.name, case_pattern="p.*")


def test_what_is_not_predicted_is_in_the_result_and_in_predictions_json(home: Workspace, folder: Path) -> None:
    make_image(folder / "a_0000.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "a_0000.nii.gz").read_bytes())
    (folder / "readme.txt").write_text("for whom it may concern")
    result = predict(home, folder, folder.name)
    assert result["predicted"] == 1
    assert [item["case"] for item in result["failed"]] == ["b"]
    assert [item["name"] for item in result["not_predicted"]] == ["readme.txt"]
    summary = read_json(Path(result["predictions"]))
    assert summary["not_predicted"] == result["not_predicted"]
    assert summary["cases"]["b"]["status"] == "failed"
    (folder / "readme.txt").unlink()
    assert read_json(Path(predict(home, folder, folder.name)["predictions"]))["not_predicted"] == []


def test_no_case_at_all_is_a_fault_or_none_as_asked(home: Workspace, folder: Path) -> None:
    for cases in ([], folder):
        with pytest.raises(ConfigError, match="set on_empty to skip"):
            predict(home, cases, folder.name)
        result = predict(home, cases, folder.name, on_empty="skip")
        assert (result["empty"], result["predicted"], result["failed"]) == (True, 0, [])
    (folder / "readme.txt").write_text("no case either, and not nothing")
    with pytest.raises(Exception, match=r"holds no case; readme.txt is not an image"):
        predict(home, folder, folder.name, on_empty="skip")
