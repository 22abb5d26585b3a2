"""Scanning a tree of mixed files: what is found, what is left out, what is named by number, and a reader that dies."""

import os
import shutil
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_jobs.contract.failure import Interrupted
from nnunet_jobs.dicom.series import scan
from nnunet_jobs.dicom.workers import dicom_workers
from nnunet_jobs.sandbox.workers import Broken
from support.dicom import multiframe, save, scanned, slices, uid, workers
from support.dicom_labels import CANARY, contours_of, write_rtstruct


def test_a_tree_of_mixed_files_becomes_series(tmp_path: Path) -> None:
    ct, mr = slices(series="ct", study="A"), slices(series="mr", study="A", modality="MR")
    other = slices(series="ct", study="B", patient="q")
    for number, ds in enumerate([*ct, *mr, *other]):
        save(tmp_path / f"d{number % 3}" / "deep", [ds], name=lambda _, number=number: f"IM{number:04d}")
    (tmp_path / "readme.txt").write_text("not DICOM")
    (tmp_path / "empty").touch()
    (tmp_path / ".hidden").mkdir()
    shutil.copy(next((tmp_path / "d0" / "deep").iterdir()), tmp_path / ".hidden" / "x.dcm")
    os.mkfifo(tmp_path / "pipe")
    found = scanned(tmp_path)
    assert [(len(series.instances), series.modality, series.patient) for series in found.series if series.study_uid == uid("B")] == [
        (7, "CT", "q")
    ]
    assert sorted((series.description, len(series.instances)) for series in found.series) == [("ct", 7), ("ct", 7), ("mr", 7)]
    assert (found.other, found.faults) == (2, [])


def test_objects_that_are_no_images_are_left_out_and_rtstruct_refers_to_its_series(tmp_path: Path) -> None:
    from nnunet_jobs.dicom.geometry import grid_of

    save(tmp_path, slices(patient=CANARY["PatientID"]))
    report = slices()[0]
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(report, keyword)
    report.Modality, report.SOPClassUID, report.SOPInstanceUID = "SR", "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3"
    save(tmp_path / "sr", [report])
    [series] = scanned(tmp_path).series
    grid = grid_of(series)
    mask = grid_mask(grid.shape)
    write_rtstruct(tmp_path / "rt.dcm", series, grid, {"a": contours_of(mask, grid)})
    found = scanned(tmp_path)
    assert found.ignored == 1
    structures = next(item for item in found.series if item.modality == "RTSTRUCT")
    assert structures.refers_to == (series.series_uid,)


def grid_mask(shape):
    import numpy as np

    mask = np.zeros(shape, bool)
    mask[5:12, 4:10, 2:5] = True
    return mask


def test_values_that_differ_between_instances_are_all_there(tmp_path: Path) -> None:
    made = slices(EchoTime=10)
    made[3].EchoTime = 20
    [series] = scanned(save(tmp_path, made), keywords=["ImageType"]).series
    assert series.tags["EchoTime"] == ("10.0", "20.0")
    assert series.tags["ImageType"] == "ORIGINAL\\PRIMARY\\AXIAL"


def test_the_same_file_twice_is_left_out_and_another_of_its_uid_is_a_fault(tmp_path: Path) -> None:
    made = slices()
    save(tmp_path / "a", made)
    shutil.copy(tmp_path / "a" / "003.dcm", tmp_path / "copy.dcm")
    found = scanned(tmp_path)
    assert [(fault.code, fault.severity, fault.file) for fault in found.faults] == [("dicom_duplicate", "warning", "file 5")]
    assert len(found.series[0].instances) == 7
    made[3].WindowWidth = 5
    save(tmp_path / "b", [made[3]])
    found = scanned(tmp_path)
    assert [(fault.code, fault.severity) for fault in found.faults if fault.severity == "error"] == [("dicom_duplicate", "error")]
    assert {path.name for path in found.files.values()} == {"003.dcm", "000.dcm"}


def test_two_patients_in_one_study_are_a_fault(tmp_path: Path) -> None:
    made = slices()
    made[3].PatientID = "somebody else"
    found = scanned(save(tmp_path, made))
    [fault] = found.faults
    assert (fault.code, found.studies[fault.file or ""]) == ("dicom_patient", uid("study"))


def test_fault_52_links_that_leave_the_tree_are_refused(tmp_path: Path) -> None:
    outside = save(tmp_path / "CANARY", slices(study="secret"))
    inside = save(tmp_path / "in", slices())
    (inside / "link").symlink_to(outside / "000.dcm")
    (inside / "folder").symlink_to(outside)
    (inside / "twin.dcm").symlink_to(inside / "000.dcm")
    (inside / "dangling").symlink_to(inside / "nothing")
    found = scanned(inside)
    assert [series.study_uid for series in found.series] == [uid("study")]
    assert [str(fault.code) for fault in found.faults] == [
        "dicom_unreadable",  # a link that leads nowhere
        "path_outside",
        "path_outside",
        "dicom_duplicate",
    ]
    assert not any("CANARY" in str(fault) for fault in found.faults)


def test_no_uid_no_place(tmp_path: Path) -> None:
    made = slices()
    del made[2].StudyInstanceUID
    [fault] = scanned(save(tmp_path, made)).faults
    assert (fault.code, "has no StudyInstanceUID" in fault.message) == ("dicom_unreadable", True)


# --- hostile files ----------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fault_57_damaged_files_end_in_a_series_or_a_fault(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed anywhere, or the file cut anywhere: an answer comes, and names nothing of the file."""
    folder = tmp_path / "in"
    shutil.rmtree(folder, ignore_errors=True)
    save(folder, slices(patient="CANARY", PatientName="CANARY", series="CANARY")[:2], name="CANARY{}".format)
    path = folder / "CANARY1"
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(132, 1400))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), 133, 200, 700, len(content) // 2]))])
    found = scanned(folder)
    assert not any("CANARY" in str(fault) for fault in found.faults)
    assert sum(len(series.instances) for series in found.series) + len(found.faults) + found.ignored >= 1


def test_fault_57_nothing_of_a_damaged_class_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A value representation that is no more says that half of the file, names included, is the class's UID."""
    folder = save(tmp_path / "in", slices(patient="CANARY", PatientName="CANARY", series="CANARY")[:2], name="CANARY{}".format)
    path = folder / "CANARY1"
    content = bytearray(path.read_bytes())
    content[162] = 0
    path.write_bytes(content)
    scanned(folder)
    assert "CANARY" not in caplog.text


def test_fault_57_a_uid_that_runs_on_into_the_patients_name_is_quoted_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    odd = slices()[0]
    odd.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2" + "0" * 80 + "CANARY"
    odd.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    del odd.Rows
    save(tmp_path, [odd])
    before = [str(item.message) for item in recwarn]  # pydicom's own, of the file that was written above
    caplog.clear()
    scanned(tmp_path)
    assert "CANARY" not in caplog.text
    assert [str(item.message) for item in recwarn] == before


def test_fault_57_a_file_nested_without_end_is_a_fault(tmp_path: Path) -> None:
    folder = save(tmp_path, slices())
    head = (folder / "000.dcm").read_bytes()
    start = 132 + 12 + int.from_bytes(head[140:144], "little")
    deep = b"\x08\x00\x15\x11SQ\x00\x00\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    (folder / "bomb.dcm").write_bytes(head[:start] + deep * 20000)
    found = scanned(folder)
    assert [(str(fault.code), fault.file) for fault in found.faults] == [("dicom_unreadable", "file 8")]
    assert len(found.series[0].instances) == 7


def test_fault_57_a_deflated_bomb_is_a_fault(tmp_path: Path) -> None:
    import zlib

    folder = save(tmp_path, slices())
    ds = pydicom.dcmread(folder / "000.dcm")
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    ds.SOPInstanceUID = "1.2.3"
    ds.save_as(folder / "bomb.dcm")
    head = (folder / "bomb.dcm").read_bytes()
    start = 132 + 12 + int.from_bytes(head[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(packer.compress(bytes(1 << 24)) for _ in range(128)) + packer.flush()
    (folder / "bomb.dcm").write_bytes(head[:start] + body)
    found = scanned(folder)
    [fault] = found.faults
    assert (fault.code, "memory" in fault.message) == ("dicom_unreadable", True)


def test_fault_44_a_reader_that_is_killed_costs_one_answer(tmp_path: Path) -> None:
    save(tmp_path, slices())
    with dicom_workers(1) as crew:
        request = {"path": str(tmp_path / "000.dcm"), "keywords": []}
        limits = {"timeout_s": 30.0, "memory_mib": 512, "beat": lambda: None}
        assert crew.call("header", request, **limits)["dicom"]
        worker = crew._idle.get()
        assert worker is not None
        worker._process.kill()
        crew._idle.put(worker)
        with pytest.raises(Broken, match="died of signal 9"):
            crew.call("header", request, **limits)
        assert crew.call("header", request, **limits)["dicom"]


def test_fault_44_a_reader_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    save(tmp_path, slices())
    with dicom_workers(1) as crew:
        request = {"path": str(tmp_path / "000.dcm"), "keywords": []}
        with pytest.raises(Broken, match="longer than 0 s"):
            crew.call("header", request, timeout_s=0.0, memory_mib=512, beat=lambda: None)
        assert crew.call("header", request, timeout_s=30.0, memory_mib=512, beat=lambda: None)["dicom"]


def test_a_stop_ends_the_scan(tmp_path: Path) -> None:
    save(tmp_path, [multiframe(slices())])

    def stop() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        scan(tmp_path, beat=stop, workers=workers(), threads=2)
