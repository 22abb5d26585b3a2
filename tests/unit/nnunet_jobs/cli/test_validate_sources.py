"""``python -m nnunet_jobs validate`` on what is no plain folder of nnU-Net's: archives, DICOM, and the layouts that came later."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from devtools.testbed.data import LABELS, decathlon, raw
from nnunet_jobs.dicom.identity import Identity
from support.dicom import SHAPE, save, slices, uid, voxels
from support.dicom_labels import CANARY, write_seg_object
from support.layouts import bids, nnunet_v1, pack, scans
from support.validating import command, environment, validate

SECRETS = [CANARY["PatientID"], CANARY["AccessionNumber"], CANARY["PatientBirthDate"], "Canary", "Yellow"]
TABLES = ("--channel-names", '{"0": "CT"}', "--label-names", '{"background": 0, "tumour": 1}')


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def study(root: Path, name: str, *, segment: str = "tumour") -> Path:
    """A study that says whose it is in headers and in names of files and folders."""
    made = slices(study=name, series="ct", stored=voxels(seed=len(name) + ord(name[-1])), **CANARY)
    folder = save(root / f"Canary^Yellow {name}" / "ct", made, name="Canary {:03d}.dcm".format)
    mask = np.zeros(SHAPE, bool)
    mask[4:9, 3:12, 2:5] = True
    write_seg_object(root / f"Canary^Yellow {name}" / "Canary seg.dcm", sorted(folder.iterdir()), {segment: mask})
    return root


def quiet(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert [secret for secret in SECRETS if secret in done.stdout + done.stderr] == [], done.stdout + done.stderr
    return done


# --- archives ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_checked_and_nothing_is_left(tmp_path: Path, scratch: Path, kind: str) -> None:
    source = raw(tmp_path / "s", ["a", "b"])
    image = source / "imagesTr" / "a_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:-30])
    done = validate(pack(tmp_path / f"s.{kind}", source, top="s"), "--json", scratch=scratch)
    assert done.returncode == 3, done.stderr
    assert [(fault["code"], fault["file"]) for fault in json.loads(done.stdout)["faults"]] == [("truncated", "imagesTr/a_0000.nii.gz")]
    assert list(scratch.iterdir()) == []


def test_a_damaged_archive_is_a_report_too(tmp_path: Path, scratch: Path) -> None:
    archive = pack(tmp_path / "s.tar.gz", raw(tmp_path / "s", ["a", "b"]))
    archive.write_bytes(archive.read_bytes()[:-200])
    done = validate(archive, "--json", scratch=scratch)
    assert (done.returncode, [fault["code"] for fault in json.loads(done.stdout)["faults"]]) == (3, ["archive_damaged"])
    assert list(scratch.iterdir()) == []


def test_nothing_is_left_by_one_that_is_told_to_stop(tmp_path: Path, scratch: Path) -> None:
    cases = [f"c{number}" for number in range(200)]  # more than are checked before the signal comes
    archive = pack(tmp_path / "s.tar", decathlon(tmp_path / "s", cases))
    running = subprocess.Popen(command(archive, "--processes", 1), env=environment(scratch), stderr=subprocess.PIPE)
    while not list(scratch.rglob("dataset.json")) and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM, said
    assert list(scratch.iterdir()) == []


# --- DICOM --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["auto", "dicom"])
def test_a_tree_of_studies_is_checked_with_no_word_of_the_patients(tmp_path: Path, scratch: Path, layout: str) -> None:
    source = study(study(tmp_path / "tree", "s1"), "s2")
    done = quiet(validate(source, "--layout", layout, *TABLES, "--html", tmp_path / "page.html", scratch=scratch))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("usable: 2 cases, layout dicom, 0 errors, 0 warnings")
    assert "made up for this run" in done.stderr
    assert [secret for secret in SECRETS if secret in (tmp_path / "page.html").read_text()] == []
    assert list(scratch.iterdir()) == []
    assert not any(path.name.startswith(".") for path in source.rglob("*"))


def test_a_tree_of_studies_in_an_archive(tmp_path: Path, scratch: Path) -> None:
    archive = pack(tmp_path / "tree.zip", study(study(tmp_path / "tree", "s1"), "s2"))
    done = quiet(validate(archive, *TABLES, scratch=scratch))
    assert (done.returncode, done.stdout.split(" (")[0]) == (0, "usable: 2 cases, layout dicom, 0 errors, 0 warnings")
    assert list(scratch.iterdir()) == []


def test_rules_for_series_and_labels_are_given_as_json(tmp_path: Path, scratch: Path) -> None:
    source = study(study(tmp_path / "tree", "s1", segment="GTV 1"), "s2", segment="GTV 2")
    names = ("--label-names", '{"background": 0, "tumour": 1}', "--json")
    without = quiet(validate(source, "--series", '{"CT": {"modality": "CT"}}', *names, scratch=scratch))
    assert without.returncode == 3
    assert {fault["code"] for fault in json.loads(without.stdout)["faults"]} == {"segment_unknown"}
    rules = ("--series", '{"CT": {"modality": "CT"}}', "--label-rules", '{"tumour": ["GTV.*"]}')
    assert quiet(validate(source, *rules, *names, scratch=scratch)).returncode == 0
    none = quiet(validate(source, "--series", '{"MR": {"modality": "MR"}}', *names, scratch=scratch))
    assert {fault["code"] for fault in json.loads(none.stdout)["faults"]} == {"dicom_series_missing"}
    for wrong in (("--series", "[1]"), ("--label-rules", "3"), ("--series", '{"CT": {"modalty": "CT"}}')):
        assert validate(source, *wrong, *names).returncode == 2


def test_warnings_of_studies_are_in_the_report(tmp_path: Path, scratch: Path) -> None:
    source = study(study(tmp_path / "tree", "s1"), "s2")
    copied = source / "Canary^Yellow s2" / "copy.dcm"
    copied.write_bytes((source / "Canary^Yellow s2" / "ct" / "Canary 000.dcm").read_bytes())
    done = quiet(validate(source, *TABLES, "--json", scratch=scratch))
    faults = json.loads(done.stdout)["faults"]
    assert (done.returncode, [(fault["code"], fault["severity"]) for fault in faults]) == (0, [("dicom_duplicate", "warning")])


def test_the_private_folder_says_who_is_who(tmp_path: Path, scratch: Path) -> None:
    source, private = study(study(tmp_path / "tree", "s1"), "s2"), tmp_path / "private"
    for path in (source / "Canary^Yellow s1" / "ct").iterdir():
        if path.name.endswith("003.dcm"):
            path.unlink()
    (source / "Canary.dcm").write_bytes(bytes(128) + b"DICM" + b"Canary^Yellow" * 9)
    done = quiet(validate(source, *TABLES, "--json", "--private", private, scratch=scratch))
    faults = {fault["code"]: fault for fault in json.loads(done.stdout)["faults"]}
    case = Identity(private).case(uid("s1"))
    assert faults["dicom_slice_missing"]["case"] == case
    assert Identity(private).mapping("Validate")[case].patient == CANARY["PatientID"]
    note = json.loads((private / "Validate.files.json").read_text())
    assert note[faults["dicom_unreadable"]["file"].removeprefix("file ")] == str(source / "Canary.dcm")
    assert str(private) in done.stderr
    assert os.stat(private).st_mode & 0o077 == 0
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("name", ["Canary^Yellow/IM0001", "Canary^Yellow.dcm"])
def test_names_in_a_folder_that_is_not_recognised_are_not_said_where_there_is_dicom(tmp_path: Path, name: str) -> None:
    source = tmp_path / "s"
    for number in range(1001):  # more than are looked at to recognise DICOM
        (source / "Canary").mkdir(parents=True, exist_ok=True)
        (source / "Canary" / f"{number}.txt").write_text("")
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes(bytes(128) + (b"" if name.endswith(".dcm") else b"DICM"))
    done = quiet(validate(source))
    assert done.returncode == 2
    assert "layout not recognised; the folder holds" in done.stderr
    assert "not named here" in done.stderr


@pytest.mark.parametrize("bad", ["first", "last"])
@pytest.mark.parametrize("name", ["IM0001", "IM0001.dcm"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_faults_of_an_archive_with_dicom_name_no_entry(tmp_path: Path, scratch: Path, kind: str, name: str, bad: str) -> None:
    content = {f"Canary^Yellow/{name}": bytes(128) + b"DICM" + bytes(100), "../Canary^Yellow": b"x"}
    archive = packed(tmp_path / f"s.{kind}", dict(sorted(content.items(), reverse=bad == "last")))
    done = quiet(validate(archive, *TABLES, "--json", scratch=scratch))
    [fault] = json.loads(done.stdout)["faults"]
    assert (done.returncode, fault["code"], fault["file"]) == (3, "archive_unsafe", None)
    assert fault["message"].startswith("1 entry, not named here since the archive holds DICOM files: ")


def packed(archive: Path, content: dict[str, bytes]) -> Path:
    """An archive of these entries in this order, whatever they are called."""
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive, "w") as file:
            for name, data in content.items():
                file.writestr(name, data)
    else:
        with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as file:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return archive


# --- other layouts ------------------------------------------------------------------------------------------------------
def test_layouts_that_came_later(tmp_path: Path) -> None:
    rows = [{"case": case, "image": f"x/{case}.nii.gz", "label": f"y/{case}.nii.gz"} for case in "ab"]
    tables = ("--channel-names", '{"0": "T1"}', "--label-names", json.dumps(LABELS))
    lesions = bids(tmp_path / "lesions", ["1", "2"], label="label-lesion_mask", table=False)
    for source, arguments, layout in (
        (nnunet_v1(tmp_path / "Task004_Small", ["a", "b"]), (), "nnunet_v1"),
        (bids(tmp_path / "bids", ["1", "2"]), (), "bids"),
        (lesions, ("--bids-label", "label-lesion_mask"), "bids"),
        (scans(tmp_path / "csv", rows), ("--mapping", "cases.csv", *tables), "csv"),
    ):
        done = validate(source, *arguments)
        assert done.stdout.startswith(f"usable: 2 cases, layout {layout}, 0 errors"), done.stdout + done.stderr
