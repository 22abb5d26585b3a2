"""Messages about bad files speak to people: nothing of Python's or a library's inside, no representations of objects."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK  # noqa: TID253  the rule is for what Airflow imports
import tifffile
from PIL import Image

from devtools.testbed.data import image_array, write_nifti
from nnunet_jobs.dataset.readers.formats import read_volume
from nnunet_jobs.dataset.readers.words import library_says

INSIDE = re.compile(r"np\.|numpy|object at 0x|<[\w.]+|\w+Error\b|NoneType|\b_\w+|b'|\w+\(\)|Traceback|int\(|\w+\.py\b")


def faults_of(path: Path, content: bytes | None = None) -> list[str]:
    if content is not None:
        path.write_bytes(content)
    volume = read_volume(path, case="c", name=path.name, label=False, beat=lambda: None)
    return [fault.message for fault in volume.faults]


def spoiled(data: bytes, *changes: tuple[bytes, bytes]) -> bytes:
    for former, later in changes:
        assert former in data, former
        data = data.replace(former, later)
    return data


def nrrd(folder: Path) -> bytes:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image_array(1)), str(folder / "good.nrrd"))
    return (folder / "good.nrrd").read_bytes()


def mha(folder: Path) -> bytes:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image_array(1)), str(folder / "good.mha"))
    return (folder / "good.mha").read_bytes()


def tiff(folder: Path) -> bytes:
    tifffile.imwrite(folder / "good.tiff", np.zeros((6, 10, 8), np.uint16), photometric="minisblack")
    return (folder / "good.tiff").read_bytes()


def nifti(folder: Path) -> bytes:
    return write_nifti(folder / "good.nii", image_array(1)).read_bytes()


def tags(data: bytes, place: int, value: int) -> bytes:
    """A TIFF whose table of tags is spoiled at a place."""
    start = int.from_bytes(data[4:8], "little") + 2
    changed = bytearray(data)
    for entry in range(start, start + 12 * 8, 12):
        changed[entry + place] = value
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("i.bmp", lambda folder: b"BM" + bytes(60)),
        ("i.bmp", lambda folder: b"no picture at all"),
        ("i.png", lambda folder: b"\x89PNG\r\n\x1a\n" + bytes(40)),
        ("i.tiff", lambda folder: b"II\x2b\x00 no tiff"),
        ("i.tiff", lambda folder: b"no tiff at all"),
        ("i.tiff", lambda folder: tags(tiff(folder), 2, 250)),
        ("i.tiff", lambda folder: tags(tiff(folder), 8, 77)),
        ("i.tiff", lambda folder: tags(tiff(folder), 4, 99)),
        ("i.mha", lambda folder: spoiled(mha(folder), (b"DimSize = 6 ", b"DimSize = 1x "))),
        ("i.mha", lambda folder: spoiled(mha(folder), (b"ElementSpacing = 1", b"ElementSpacing = q"))),
        ("i.mha", lambda folder: spoiled(mha(folder), (b"Offset = 0", b"Offset = z"))),
        ("i.nrrd", lambda folder: spoiled(nrrd(folder), (b"kinds: domain", b"kinds: dmain"))),
        ("i.nrrd", lambda folder: spoiled(nrrd(folder), (b"sizes: 6", b"sizes: x"))),
        ("i.nrrd", lambda folder: spoiled(nrrd(folder), (b"(1,0,0)", b"1,0,0)"))),
        ("i.nii", lambda folder: nifti(folder)[:100]),
        ("i.nii", lambda folder: spoiled(nifti(folder), (b"n+1\0", b"zzz\0"))),
        ("i.nii", lambda folder: nifti(folder)[:70] + b"\xff\x7f" + nifti(folder)[72:]),
        ("i.nii", lambda folder: nifti(folder)[:40] + bytes(16) + nifti(folder)[56:]),
        ("i.nii.gz", lambda folder: b"\x1f\x8b\x08" + bytes(40)),
    ],
)
def test_bad_files_are_described_in_words_for_people(tmp_path, name, build):
    messages = faults_of(tmp_path / name, build(tmp_path))
    assert messages
    for message in messages:
        assert not INSIDE.search(message), message
        assert str(tmp_path) not in message


def test_a_spacing_file_without_its_entry(tmp_path):
    (tmp_path / "i.json").write_text('{"spacings": [1, 1, 1]}')
    tiff(tmp_path)
    [message] = faults_of((tmp_path / "good.tiff").rename(tmp_path / "i_0000.tiff"))
    assert message == 'i.json beside it must hold {"spacing": [z, y, x]} in mm'


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (KeyError("spacing"), "its parts do not fit together"),
        (TypeError("'<' not supported between instances of 'tuple' and 'int'"), "its parts do not fit together"),
        (ValueError("zip() argument 2 is longer than argument 1"), "its parts do not fit together"),
        (ValueError("invalid literal for int() with base 10: '1x'"), "'1x' is not a number"),
        (ValueError("could not convert string to float: 'q'"), "'q' is not a number"),
        ("<tifffile.TiffTag 262 @106> raised ValueError('9 is not a valid PHOTOMETRIC')", "9 is not a valid PHOTOMETRIC"),
        ("cannot identify image file <_io.BytesIO object at 0x7f1c9d>", "cannot identify image file"),
        (RuntimeError("Exception thrown in SimpleITK ImageFileReader_Execute: a.cxx:97:\nsitk::ERROR: Unable to read"), "Unable to read"),
        (ValueError(""), "its parts do not fit together"),
    ],
)
def test_what_libraries_say_is_brought_into_words(said, shown):
    assert library_says(said) == shown


def test_no_fault_holds_numpys_spelling(tmp_path):
    zero = Image.new("L", (8, 8))
    zero.save(tmp_path / "i.png")
    metres = np.diag([0.001, 0.001, 0.001, 1])
    for path in (tmp_path / "i.png", write_nifti(tmp_path / "m.nii.gz", image_array(1), affine=metres)):
        assert [message for message in faults_of(path) if INSIDE.search(message)] == []
        assert faults_of(path)
