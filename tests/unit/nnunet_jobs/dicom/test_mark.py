"""DICOM files without the DICM mark: read as what they are, or named; never a shorter volume or a lost label in silence."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from nnunet_jobs.dicom.convert import write_nifti
from nnunet_jobs.dicom.geometry import grid_of
from nnunet_jobs.dicom.identity import Identity
from nnunet_jobs.dicom.mark import begins_data_set, holds_dicom, may_hold_dicom
from support.dicom import save, scanned, slices, uid, voxels, workers

STYLES = {"implicit": (True, True), "explicit": (False, True), "big endian": (False, False)}


def without_mark(path: Path, style: str = "implicit") -> None:
    """The same data set without preamble, mark and file meta information, as old archives and planning systems write it."""
    whole = pydicom.dcmread(path)
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = STYLES[style]
    if style == "big endian":
        whole["PixelData"].value = np.frombuffer(whole.PixelData, "<u2").astype(">u2").tobytes()
    write_dataset(out, Dataset({element.tag: element for element in whole}))
    path.write_bytes(out.getvalue())


def without_preamble(path: Path) -> None:
    """File meta information and data set, without the preamble and the mark before them."""
    path.write_bytes(path.read_bytes()[132:])


@pytest.mark.parametrize("style", [*STYLES, "meta"])
def test_slices_without_the_mark_are_slices(tmp_path: Path, style: str) -> None:
    folder = save(tmp_path / "in", slices(), name="IM{:03d}".format)
    for name in ("IM005", "IM006"):
        without_preamble(folder / name) if style == "meta" else without_mark(folder / name, style)
    found = scanned(folder)
    assert (found.faults, found.other) == ([], 0)
    [series] = found.series
    write_nifti(series, grid_of(series), tmp_path / "a.nii.gz", beat=lambda: None, workers=workers())
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj), voxels())


def test_a_folder_of_files_without_the_mark_is_known_for_dicom(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", slices()[:2], name="IM{:03d}".format)
    for path in folder.iterdir():
        without_mark(path)
    assert holds_dicom(folder)
    assert may_hold_dicom(folder)


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"", "006.dcm", "is empty"),
        (b"\0" * 100, "006.dcm", "does not begin like one"),
        (b"", "IM006", "is empty"),
        (bytes(5000), "IM006", "does not begin like one"),
        (None, "006.dcm", "damaged mark"),
        (b"\x1f\x8b" + bytes(500), "006.dcm.gz", "does not begin like one"),
    ],
)
def test_a_file_that_should_be_dicom_and_is_not_is_named(tmp_path: Path, content: bytes | None, name: str, says: str) -> None:
    """The last slice: without it the series is a volume like any other."""
    style = "IM{:03d}" if name.startswith("IM") else "{:03d}.dcm"
    folder = save(tmp_path / "in", slices(), name=style.format)
    last = folder / style.format(6)
    whole = last.read_bytes()
    last.unlink()
    (folder / name).write_bytes(whole[:128] + b"DCM\0" + whole[132:] if content is None else content)
    (folder / "readme.txt").write_text("not DICOM")
    found = scanned(folder)
    [fault] = found.faults
    assert (fault.code, fault.severity, says in fault.message) == ("dicom_unreadable", "error", True)
    assert found.files == {7: folder / name}
    assert found.studies == {"file 7": uid("study")}, "the other files of its folder are all of one study"
    assert found.other == 1


def test_what_is_no_dicom_by_any_sign_is_counted_and_not_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", slices())
    (folder / "DICOMDIR").write_text("index")
    (folder / "notes 2024.txt").write_text("not DICOM")
    (folder / "report.pdf").write_bytes(b"%PDF-1.4" + bytes(600))
    found = scanned(folder)
    assert (found.faults, found.other) == ([], 3)
    shutil.make_archive(str(tmp_path / "more"), "zip", folder)
    shutil.move(tmp_path / "more.zip", folder / "more.zip")
    [fault] = scanned(folder).faults
    assert (fault.code, fault.severity) == ("file_unused", "warning")


@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
def test_a_slice_without_a_matrix_is_named_and_not_taken_for_a_report(tmp_path: Path, keyword: str) -> None:
    made = slices()
    delattr(made[6], keyword)
    found = scanned(save(tmp_path, made))
    [fault] = found.faults
    assert (fault.code, fault.file, found.ignored) == ("dicom_unreadable", "file 7", 0)


def test_links_that_lose_slices_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", slices())
    (folder / ".store").mkdir()
    (folder / "006.dcm").rename(folder / ".store" / "006.dcm")
    (folder / "sub").symlink_to(folder / ".store")
    (folder / "gone.dcm").symlink_to(folder / "nothing.dcm")
    assert sorted(fault.message.partition(";")[0] for fault in scanned(folder).faults) == [
        "the link before it is broken",
        "the link before it leads into a hidden folder, which is not read",
    ]


def test_random_bytes_and_text_are_no_data_set() -> None:
    rng = np.random.default_rng(3)
    assert not any(begins_data_set(rng.bytes(512)) for _ in range(5000))
    buffer = io.BytesIO()
    np.savez(buffer, voxels())
    for head in (b"", b"\x08\x00\x05\x00", b"\x08\x00" * 256, b"%PDF-1.7 \n" * 40, buffer.getvalue()[:512], bytes(512)):
        assert not begins_data_set(head)


def test_deidentification_reads_files_without_the_mark_and_names_what_is_none(tmp_path: Path) -> None:
    from nnunet_jobs.dicom.deidentify import NotExported, deidentify

    folder = save(tmp_path / "in", slices()[:1])
    without_mark(folder / "000.dcm")
    identity = Identity(tmp_path / "private")
    written = deidentify(folder / "000.dcm", tmp_path / "out", identity)
    assert written is not None
    assert (tmp_path / "out" / written).read_bytes()[128:132] == b"DICM"
    (folder / "001.dcm").touch()
    with pytest.raises(NotExported, match="does not begin like one"):
        deidentify(folder / "001.dcm", tmp_path / "out", identity)
