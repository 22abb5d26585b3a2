"""FAULTS.md row 59: one dataset for each entry of the catalogue, then many entries in one dataset, then what is legal."""

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pytest

from devtools.testbed.data import LABELS, SHAPE, decathlon, image_array, label_array, raw, write_nifti
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.check import Report, check_dataset

Build = Callable[[Path], None]
A, B, LA = "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz"


def check(source: Path, **params) -> Report:
    return check_dataset(source, params=RegisterParams(dataset_id=1, name="Any", source=str(source), **params), processes=2)


def found(report: Report) -> set[tuple[str, str, str | None, str | None]]:
    return {(fault.code, fault.severity, fault.case, fault.file) for fault in report.faults}


def describe(source: Path, **changes) -> None:
    path = source / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(name: str) -> Build:
    """Half of the file is lost."""
    return lambda source: (source / name).write_bytes((source / name).read_bytes()[: -((source / name).stat().st_size // 2)])


def image(name: str, array: np.ndarray, affine: np.ndarray | None = None) -> Build:
    return lambda source: write_nifti(source / name, array, affine=affine)


def with_voxel(value: float) -> np.ndarray:
    array = image_array(3)
    array[2, 3, 4] = value
    return array


def header(name: str, offset: int, value: bytes) -> Build:
    """Overwrite bytes of the header."""

    def build(source: Path) -> None:
        data = bytearray(gzip.decompress((source / name).read_bytes()))
        data[offset : offset + len(value)] = value
        (source / name).write_bytes(gzip.compress(bytes(data)))

    return build


def each(*builds: Build) -> Build:
    def build(source: Path) -> None:
        for one in builds:
            one(source)

    return build


def affine(**entries: float) -> np.ndarray:
    matrix = np.eye(4)
    for name, value in entries.items():
        matrix[int(name[1]), int(name[2])] = value
    return matrix


def flip_crc(source: Path) -> None:
    data = bytearray((source / LA).read_bytes())
    data[-6] ^= 1
    (source / LA).write_bytes(data)


def gap_of_channels(source: Path) -> None:
    describe(source, channel_names={"0": "x", "1": "y", "2": "z"})
    for case in "abc":
        for channel in (1, 2):
            write_nifti(source / "imagesTr" / f"{case}_{channel:04d}.nii.gz", image_array(channel))
    (source / "imagesTr" / "a_0001.nii.gz").unlink()


def rename(old: str, new: str) -> Build:
    def build(source: Path) -> None:
        (source / "imagesTr" / f"{old}_0000.nii.gz").rename(source / "imagesTr" / f"{new}_0000.nii.gz")
        (source / "labelsTr" / f"{old}.nii.gz").rename(source / "labelsTr" / f"{new}.nii.gz")

    return build


def twice(source: Path) -> None:
    """A list of Decathlon's that names a case two times."""
    decathlon(source, ["a", "b"])
    description = json.loads((source / "dataset.json").read_text())
    description["training"].append(description["training"][0])
    (source / "dataset.json").write_text(json.dumps(description))
    for name in (A, B, "imagesTr/c_0000.nii.gz", "labelsTr/c.nii.gz"):
        (source / name).unlink()


def other_ending(source: Path) -> None:
    (source / A).rename(source / "imagesTr" / "a_0000.mha")


def flat(source: Path) -> None:
    write_nifti(source / A, image_array(1, (8, 10, 1)))
    write_nifti(source / LA, label_array(shape=(8, 10, 1)))


def one_voxel(source: Path) -> None:
    write_nifti(source / A, image_array(1, (1, 1, 1)))


def colours(source: Path) -> None:
    write_nifti(source / A, np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))


def link_out(source: Path) -> None:
    target = source.parent / "elsewhere.nii.gz"
    os.rename(source / A, target)
    (source / A).symlink_to(target)


def listed(image_path: str) -> Build:
    """``dataset.json["dataset"]`` names files."""

    def build(source: Path) -> None:
        listing = {case: {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"} for case in "abc"}
        listing["a"]["images"] = [image_path]
        describe(source, dataset=listing)

    return build


def regions(labels: dict, order: list[int] | None) -> Build:
    return lambda source: describe(source, labels=labels, **({} if order is None else {"regions_class_order": order}))


def only(*cases: str) -> Build:
    def build(source: Path) -> None:
        for case in "abc":
            if case not in cases:
                (source / "imagesTr" / f"{case}_0000.nii.gz").unlink()
                (source / "labelsTr" / f"{case}.nii.gz").unlink()

    return build


def all_labels_empty(source: Path) -> None:
    for case in "abc":
        write_nifti(source / "labelsTr" / f"{case}.nii.gz", label_array((0,)))


def all_labels_ignored(source: Path) -> None:
    for case in "abc":
        write_nifti(source / "labelsTr" / f"{case}.nii.gz", label_array((0, 3)))
    describe(source, labels={**LABELS, "ignore": 3})


def huge(source: Path) -> None:
    header(A, 42, struct.pack("<3h", 32767, 32767, 32767))(source)


def bomb(source: Path) -> None:
    """A header that claims 2 TiB and a stream that unpacks to far more than the file."""
    head = bytearray(nibabel.Nifti1Header(endianness="<").binaryblock)
    head[40:48], head[70:74], head[108:112] = struct.pack("<4h", 3, 16384, 16384, 8192), struct.pack("<2h", 2, 8), struct.pack("<f", 352)
    head[344:348] = b"n+1\0"
    (source / A).write_bytes(gzip.compress(bytes(head) + bytes(4) + bytes(64 << 20)))


E, W = "error", "warning"
MICRO = np.diag([0.001, 0.001, 0.002, 1])
CATALOGUE: dict[str, tuple[Build, tuple[str, str, str | None, str | None]]] = {
    # what nnU-Net's own check accepts
    "truncated image": (cut(A), ("truncated", E, "a", A)),
    "truncated label": (cut(LA), ("truncated", E, "a", LA)),
    "NaN": (image(A, with_voxel(np.nan)), ("value_nan", E, "a", A)),
    "Inf": (image(A, with_voxel(-np.inf)), ("value_inf", E, "a", A)),
    "NaN in a label": (image(LA, with_voxel(np.nan)), ("value_nan", E, "a", LA)),
    "origin mismatch": (image(LA, label_array(), affine(_03=5)), ("affine_mismatch", E, "a", LA)),
    "direction mismatch": (image(LA, label_array(), affine(_00=-1, _03=7)), ("affine_mismatch", E, "a", LA)),
    "NaN affine": (header(A, 280, struct.pack("<f", float("nan"))), ("affine_invalid", E, "a", A)),
    "zero spacing": (header(A, 84, struct.pack("<f", 0.0)), ("spacing_invalid", E, "a", A)),
    "channels 0000 and 0002 without 0001": (gap_of_channels, ("channel_missing", E, "a", "imagesTr/a_0001.nii.gz")),
    "empty label": (image(LA, label_array((0,))), ("label_empty", W, "a", LA)),
    "all labels empty": (all_labels_empty, ("labels_all_empty", E, None, None)),
    "all labels ignored": (all_labels_ignored, ("labels_all_empty", E, None, None)),
    "declared label never used": (regions({**LABELS, "rare": 3}, None), ("label_unused", W, None, "dataset.json")),
    "label file without image": (
        image("labelsTr/lonely.nii.gz", label_array()),
        ("label_without_image", E, "lonely", "labelsTr/lonely.nii.gz"),
    ),
    "wrong regions_class_order": (
        regions({"background": 0, "whole": [1, 2], "core": 2}, [2, 1]),
        ("regions_order_invalid", E, None, "dataset.json"),
    ),
    "regions without regions_class_order": (
        regions({"background": 0, "whole": [1, 2], "core": 2}, None),
        ("regions_order_invalid", E, None, "dataset.json"),
    ),
    "duplicate case ids": (twice, ("case_duplicate", E, "a", "imagesTr/a.nii.gz")),
    "ids that clash by case": (rename("b", "A"), ("name_clash", E, "A", "imagesTr/A_0000.nii.gz")),
    "ids that clash by Unicode form": (
        each(rename("a", "b\u00e4r"), rename("b", "ba\u0308r")),
        ("name_clash", E, "b\u00e4r", "imagesTr/b\u00e4r_0000.nii.gz"),
    ),
    "mixed file endings": (other_ending, ("ending_mixed", E, "a", "imagesTr/a_0000.mha")),
    "a 2D case among 3D ones": (flat, ("dimension_mixed", E, "a", A)),
    "one-voxel volume": (one_voxel, ("not_3d", E, "a", A)),
    "metre units": (each(header(A, 123, b"\x01"), header(LA, 123, b"\x01")), ("units_suspicious", W, "a", A)),
    "metres called millimetres": (
        each(image(A, image_array(1), MICRO), image(LA, label_array(), MICRO)),
        ("units_suspicious", W, "a", A),
    ),
    "constant image": (image(A, np.full(SHAPE, 7, np.int16)), ("image_constant", W, "a", A)),
    "complex dtype": (image(A, image_array(1).astype(np.complex64)), ("dtype", E, "a", A)),
    "uncompressed file named .gz": (
        lambda source: (source / A).write_bytes(gzip.decompress((source / A).read_bytes())),
        ("not_gzip", E, "a", A),
    ),
    "a single case": (only("a"), ("single_case", W, "a", A)),
    "a symlink that leaves the root": (link_out, ("path_outside", E, None, A)),
    "an absolute path": (listed("/etc/passwd"), ("path_outside", E, "a", "/etc/passwd")),
    "a path with ..": (listed("../x.nii.gz"), ("path_outside", E, "a", "../x.nii.gz")),
    "a path with $ENV": (listed("$HOME/x.nii.gz"), ("path_outside", E, "a", "$HOME/x.nii.gz")),
    "a hostile name": (rename("a", ";$(id)"), ("name_invalid", E, ";$(id)", "imagesTr/;$(id)_0000.nii.gz")),
    "a name with a newline": (rename("a", "x\ny"), ("name_invalid", E, "'x\\ny'", "'imagesTr/x\\ny_0000.nii.gz'")),
    "a name that nnU-Net takes for a label's": (rename("a", "b_seg"), ("name_invalid", E, "b_seg", "imagesTr/b_seg_0000.nii.gz")),
    "a file that no case uses": (
        each(listed("imagesTr/a_0000.nii.gz"), image("imagesTr/odd.nii.gz", image_array(1))),
        ("file_unused", W, "odd", "imagesTr/odd.nii.gz"),
    ),
    # what nnU-Net's own check rejects, one at a time
    "shape mismatch": (image(LA, label_array(shape=(8, 10, 7))), ("shape_mismatch", E, "a", LA)),
    "spacing mismatch": (image(LA, label_array(), np.diag([1, 1, 1.5, 1])), ("spacing_mismatch", E, "a", LA)),
    "non-integer label": (image(LA, label_array().astype(np.float32) * 0.5), ("label_not_integer", E, "a", LA)),
    "unknown label": (image(LA, label_array((0, 1, 2, 5))), ("label_undeclared", E, "a", LA)),
    "missing label": (lambda source: (source / LA).unlink(), ("label_missing", E, "a", A)),
    "missing channel": (
        each(gap_of_channels, lambda source: (source / "imagesTr" / "a_0002.nii.gz").unlink()),
        ("channel_missing", E, "a", "imagesTr/a_0001.nii.gz"),
    ),
    "extra channel": (image("imagesTr/a_0001.nii.gz", image_array(1)), ("channel_extra", E, "a", "imagesTr/a_0001.nii.gz")),
    "non-consecutive labels": (
        regions({"background": 0, "front": 1, "back": 3}, None),
        ("labels_not_consecutive", E, None, "dataset.json"),
    ),
    "no background": (regions({"front": 1, "back": 2}, None), ("background_missing", E, None, "dataset.json")),
    "ignore label not the highest": (
        regions({"background": 0, "front": 1, "ignore": 2, "back": 3}, None),
        ("ignore_not_highest", E, None, "dataset.json"),
    ),
    "CRC damage": (flip_crc, ("gzip_damaged", E, "a", LA)),
    "zero-size file": (lambda source: (source / A).write_bytes(b""), ("empty_file", E, "a", A)),
    "sheared affine": (image(A, image_array(1), affine(_01=0.3)), ("affine_invalid", E, "a", A)),
    "huge header": (huge, ("truncated", E, "a", A)),
    "gzip bomb": (bomb, ("truncated", E, "a", A)),
    "4D": (image(A, image_array(1, (*SHAPE, 3))), ("not_3d", E, "a", A)),
    "RGB": (colours, ("dtype", E, "a", A)),
    "zero cases": (only(), ("no_cases", E, None, None)),
}


@pytest.mark.parametrize("entry", CATALOGUE)
def test_fault_59_each_entry_of_the_catalogue_is_classified(tmp_path, entry):
    build, expected = CATALOGUE[entry]
    source = raw(tmp_path / "s", ["a", "b", "c"])
    build(source)
    report = check(source)
    assert expected in found(report)
    assert report.ok == all(fault.severity == "warning" for fault in report.faults)
    if expected[1] == "warning":
        assert report.ok
    if expected[2] == "a":  # nobody else is blamed for it
        assert {fault.case for fault in report.faults} == {"a"}, report.faults


def test_fault_59_many_entries_are_all_in_one_report(tmp_path):
    skipped = {"regions", "labels", "label", "no", "ignore", "declared", "zero", "all", "a", "an", "duplicate", "ids", "channels", "gzip"}
    chosen = {
        name: item
        for name, item in CATALOGUE.items()
        if item[1][2] == "a" and item[1][3] in (A, LA) and name.split()[0] not in skipped and name != "missing channel"
    }
    assert len(chosen) >= 20
    source = raw(tmp_path / "s", [f"c{number:02d}" for number in range(len(chosen) + 2)])
    expected = set()
    for number, (build, (code, severity, _, file)) in enumerate(chosen.values()):
        case, scratch = f"c{number:02d}", raw(tmp_path / f"one{number}", ["a"])
        build(scratch)
        for name in (A, LA):
            target = source / name.replace("/a", f"/{case}")
            target.unlink()
            if (scratch / name).exists():
                os.rename(scratch / name, target)
        expected.add((code, severity, case, str(file).replace("/a", f"/{case}")))
    describe(source, labels={**LABELS, "rare": 3})
    expected.add(("label_unused", "warning", None, "dataset.json"))
    report = check(source)
    assert found(report) >= expected
    assert report.cases == len(chosen) + 2
    sound = {f"c{number:02d}" for number in (len(chosen), len(chosen) + 1)}
    assert not any(fault.case in sound for fault in report.faults)


# --- legal datasets -------------------------------------------------------------------------------------------------
def with_regions(root: Path) -> Path:
    source = raw(root, ["a", "b"], labels={"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    write_nifti(source / LA, label_array((0, 1)))
    return source


def with_ignore(root: Path) -> Path:
    source = raw(root, ["a", "b"], labels={**LABELS, "ignore": 3})
    write_nifti(source / LA, label_array((0, 1, 2, 3)))
    return source


def two_dimensional(root: Path) -> Path:
    source = raw(root, ["a", "b", "c"])
    for number, case in enumerate("abc"):
        shape = (16, 18, 1) if case == "a" else (16, 18)
        write_nifti(source / "imagesTr" / f"{case}_0000.nii.gz", image_array(number, shape))
        write_nifti(source / "labelsTr" / f"{case}.nii.gz", label_array(shape=(16, 18, 1)).reshape(shape))
    return source


def float_labels(root: Path) -> Path:
    source = raw(root, ["a", "b"])
    write_nifti(source / LA, label_array().astype(np.float64))
    nibabel.save(nibabel.Nifti1Image(label_array().astype(np.int64), np.eye(4), dtype=np.int64), source / "labelsTr" / "b.nii.gz")
    return source


def one_empty_label(root: Path) -> Path:
    source = raw(root, list("abcde"))
    write_nifti(source / LA, label_array((0,)))
    return source


@pytest.mark.parametrize("build", [with_regions, with_ignore, two_dimensional, float_labels, one_empty_label])
def test_fault_59_legal_datasets_pass(tmp_path, build):
    report = check(build(tmp_path / "s"))
    assert report.ok, report.faults
    assert {fault.code for fault in report.faults} == ({"label_empty"} if build is one_empty_label else set())
    assert all(summary["picture"] for summary in report.summaries.values())
    assert len(report.summaries) == report.cases


def test_scaled_labels_and_images_are_seen_as_readers_see_them(tmp_path):
    source = raw(tmp_path / "s", ["a", "b"])
    label = nibabel.Nifti1Image(label_array().astype(np.int16) * 2, np.eye(4))
    label.header.set_slope_inter(0.5, 0)
    nibabel.save(label, source / LA)
    data = bytearray(gzip.decompress((source / LA).read_bytes()))
    data[112:120] = struct.pack("<2f", 0.5, 0)  # nibabel rescales what it writes
    values = (label_array().astype(np.int16) * 2).tobytes(order="F")
    (source / LA).write_bytes(gzip.compress(bytes(data[:352]) + values))
    assert check(source).ok


def test_micrometres_are_compared_as_nnunet_reads_them(tmp_path):
    """The same numbers in other units are another place: SimpleITK converts, so image and label no longer fit."""
    source = raw(tmp_path / "s", ["a", "b"])
    header(A, 123, b"\x03")(source)
    assert {("units_suspicious", "warning", "a", A), ("spacing_mismatch", "error", "a", LA)} <= found(check(source))
