"""File by file: each kind of damage is recognised, named with case and file, and all of them come in one report."""

import gzip
import os
import struct
from pathlib import Path

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pytest

from devtools.testbed.data import SHAPE, decathlon, image_array, label_array, raw, register_dataset, write_nifti
from nnunet_jobs.contract.failure import DataError


def faults_of(workspace, source: Path, **params) -> set[tuple[str, str | None, str | None]]:
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source, **params)
    assert not any(path.name.endswith((".staging", "Dataset004_Small")) for path in Path(workspace.raw).iterdir())
    return {(fault.code, fault.case, fault.file) for fault in caught.value.faults}


def shifted(mm: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = mm
    return affine


def header_edit(path: Path, offset: int, value: bytes) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[offset : offset + len(value)] = value
    path.write_bytes(gzip.compress(bytes(data)))


def test_every_fault_of_every_case_is_in_one_report(tmp_path, workspace):
    source = raw(tmp_path / "s", [f"c{n:02d}" for n in range(20)])
    image, label = (lambda n: source / "imagesTr" / f"c{n:02d}_0000.nii.gz"), (lambda n: source / "labelsTr" / f"c{n:02d}.nii.gz")
    image(0).write_bytes(image(0).read_bytes()[:-40])
    damaged = bytearray(label(1).read_bytes())
    damaged[-6] ^= 1  # the CRC
    label(1).write_bytes(damaged)
    write_nifti(image(2), np.where(np.arange(np.prod(SHAPE)).reshape(SHAPE) == 5, np.nan, image_array(2)).astype(np.float32))
    write_nifti(image(3), np.where(np.arange(np.prod(SHAPE)).reshape(SHAPE) == 5, np.inf, image_array(3)))
    write_nifti(label(4), label_array(shape=(8, 10, 7)))
    write_nifti(label(5), label_array(), affine=np.diag([1, 1.5, 1, 1]))
    write_nifti(label(6), label_array(), affine=shifted(3))
    write_nifti(label(7), label_array((0, 1, 9)))
    write_nifti(label(8), label_array().astype(np.float32) * 1.5)
    image(9).write_bytes(b"")
    write_nifti(image(10), image_array(10).astype(np.complex64))
    write_nifti(image(11), image_array(11, (*SHAPE, 2)))
    header_edit(image(12), 80, struct.pack("<f", 0.0))
    image(13).write_bytes(gzip.decompress(image(13).read_bytes()))
    image(14).write_bytes(gzip.compress(b"no image at all" * 100))
    image(15).unlink()
    os.mkfifo(image(15))
    write_nifti(image(16), image_array(16, (1, 1, 6)))
    write_nifti(image(17), image_array(17), affine=np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    header_edit(image(18), 42, struct.pack("<3h", 3000, 3000, 3000))
    write_nifti(label(19), np.full(SHAPE, np.nan, dtype=np.float32))
    assert faults_of(workspace, source) >= {
        ("truncated", "c00", "imagesTr/c00_0000.nii.gz"),
        ("gzip_damaged", "c01", "labelsTr/c01.nii.gz"),
        ("value_nan", "c02", "imagesTr/c02_0000.nii.gz"),
        ("value_inf", "c03", "imagesTr/c03_0000.nii.gz"),
        ("shape_mismatch", "c04", "labelsTr/c04.nii.gz"),
        ("spacing_mismatch", "c05", "labelsTr/c05.nii.gz"),
        ("affine_mismatch", "c06", "labelsTr/c06.nii.gz"),
        ("label_undeclared", "c07", "labelsTr/c07.nii.gz"),
        ("label_not_integer", "c08", "labelsTr/c08.nii.gz"),
        ("empty_file", "c09", "imagesTr/c09_0000.nii.gz"),
        ("dtype", "c10", "imagesTr/c10_0000.nii.gz"),
        ("not_3d", "c11", "imagesTr/c11_0000.nii.gz"),
        ("spacing_invalid", "c12", "imagesTr/c12_0000.nii.gz"),
        ("not_gzip", "c13", "imagesTr/c13_0000.nii.gz"),
        ("not_nifti", "c14", "imagesTr/c14_0000.nii.gz"),
        ("unreadable", "c15", "imagesTr/c15_0000.nii.gz"),
        ("not_3d", "c16", "imagesTr/c16_0000.nii.gz"),
        ("affine_invalid", "c17", "imagesTr/c17_0000.nii.gz"),
        ("truncated", "c18", "imagesTr/c18_0000.nii.gz"),
        ("value_nan", "c19", "labelsTr/c19.nii.gz"),
    }


def test_channels_are_held_against_each_other(tmp_path, workspace):
    source = raw(tmp_path / "s", ["a", "b"], channels=2)
    write_nifti(source / "imagesTr" / "a_0001.nii.gz", image_array(1), affine=shifted(-2))
    write_nifti(source / "imagesTr" / "b_0001.nii.gz", image_array(1, (8, 10, 5)))
    assert faults_of(workspace, source) == {
        ("affine_mismatch", "a", "imagesTr/a_0001.nii.gz"),
        ("shape_mismatch", "b", "imagesTr/b_0001.nii.gz"),
    }


def test_rounding_of_the_affine_is_no_fault_but_the_tolerance_can_be_set(tmp_path, workspace):
    source = raw(tmp_path / "s", ["a", "b"])
    write_nifti(source / "labelsTr" / "a.nii.gz", label_array(), affine=shifted(0.05))
    assert faults_of(workspace, source, spacing_tolerance=1e-4) == {("affine_mismatch", "a", "labelsTr/a.nii.gz")}
    assert register_dataset(workspace, source)["added"] == 2


def test_4d_files_with_the_wrong_number_of_channels(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b", "c"], channels=3)
    write_nifti(source / "imagesTr" / "a.nii.gz", image_array(1))
    write_nifti(source / "imagesTr" / "b.nii.gz", image_array(1, (*SHAPE, 4)))
    assert {fault[:2] for fault in faults_of(workspace, source)} == {("channel_missing", "a"), ("channel_extra", "b")}


def test_missing_files_of_a_decathlon_list_are_named(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b"])
    (source / "imagesTr" / "a.nii.gz").unlink()
    (source / "labelsTr" / "b.nii.gz").unlink()
    assert faults_of(workspace, source) == {
        ("image_missing", "a", "imagesTr/a.nii.gz"),
        ("label_missing", "b", "labelsTr/b.nii.gz"),
    }


def test_colours_and_big_endian_and_several_gzip_streams(tmp_path, workspace):
    source = raw(tmp_path / "s", ["big", "rgb", "parts"])
    path = source / "imagesTr" / "parts_0000.nii.gz"
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:1000]) + gzip.compress(data[1000:]) + b"\0" * 100)
    nibabel.save(
        nibabel.Nifti1Image(image_array(1).astype(">f4"), np.eye(4), nibabel.Nifti1Header(endianness=">")),
        source / "imagesTr" / "big_0000.nii.gz",
    )
    colours = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    write_nifti(source / "imagesTr" / "rgb_0000.nii.gz", colours)
    assert faults_of(workspace, source) == {("dtype", "rgb", "imagesTr/rgb_0000.nii.gz")}


def test_a_file_that_unpacks_to_far_more_than_its_header_says(tmp_path, workspace):
    source = raw(tmp_path / "s", ["a"])
    path = source / "imagesTr" / "a_0000.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(1 << 28), 1))
    assert faults_of(workspace, source) == {("not_nifti", "a", "imagesTr/a_0000.nii.gz")}


def test_random_bytes_are_reported_and_crash_nothing(tmp_path, workspace):
    cases = [f"r{n:02d}" for n in range(40)]
    source = raw(tmp_path / "s", cases)
    rng = np.random.default_rng(0)
    for case in cases:
        path = source / "imagesTr" / f"{case}_0000.nii.gz"
        data = bytearray(gzip.decompress(path.read_bytes()))
        for offset in rng.integers(0, 352, 60):
            data[offset] = rng.integers(0, 256)
        path.write_bytes(gzip.compress(bytes(data)))
    assert {case for _, case, _ in faults_of(workspace, source)} == set(cases)


def test_an_empty_label_is_a_warning_not_a_fault(tmp_path, workspace, caplog):
    source = raw(tmp_path / "s", ["a", "b"])
    write_nifti(source / "labelsTr" / "a.nii.gz", label_array((0,)))
    assert register_dataset(workspace, source)["added"] == 2
    assert "label_empty [a labelsTr/a.nii.gz]" in caplog.text


def test_a_long_report_lists_twenty_and_carries_all(tmp_path, workspace):
    source = raw(tmp_path / "s", [f"c{n:02d}" for n in range(25)])
    for path in (source / "imagesTr").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert len(caught.value.faults) == 25
    assert "25 faults in 25 cases" in str(caught.value)
    assert "and 5 more" in str(caught.value)
