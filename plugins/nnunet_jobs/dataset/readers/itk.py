"""Reads MetaImage (.mha) and NRRD files as nnU-Net does, by SimpleITK, after the header was compared with the data.

SimpleITK may fill in what a truncated file lacks, and would follow a header to any other file on the disk; both are refused first.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.dataset.readers.volume import CHUNK, DamagedFile, Reading, check_extent, read_bytes, shown_mm, take_geometry, take_values
from nnunet_jobs.dataset.readers.words import library_says
from nnunet_jobs.faults.codes import Code

_LONGEST_HEADER = 1 << 16
_META_AXES = 10  # size of MetaIO's arrays
_META_TYPES = {
    "CHAR": 1,
    "UCHAR": 1,
    "SHORT": 2,
    "USHORT": 2,
    "INT": 4,
    "UINT": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "LONG_LONG": 8,
    "ULONG_LONG": 8,
}
_META_TYPES |= {"LONG": 4, "ULONG": 4}  # MetaIO's own size of a long, on every platform
_META_SYNONYMS = (
    ("TransformMatrix", "Rotation", "Orientation"),
    ("Offset", "Position", "Origin"),
    ("ElementSpacing", "ElementSize"),
)
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t", "double"), 8),
}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(reading: Reading) -> None:
    """Fill the volume from a ``.mha`` or ``.nrrd`` file.

    Raises:
        DamagedFile: It cannot be read. SimpleITK may raise other errors for bad content.
        OSError: It cannot be read.
        MemoryError: There is not enough memory to read it.
    """
    data = read_bytes(reading)
    expected = _check_meta(reading, data) if reading.path.name.endswith(".mha") else _check_nrrd(reading, data)
    del data
    reading.reserve(4 * expected)
    reading.beat()
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        image = SimpleITK.ReadImage(str(reading.path))
    except RuntimeError as error:
        if "alloc" in str(error).lower():
            raise MemoryError("ITK could not get the memory for the image") from error
        raise DamagedFile(Code.NOT_READABLE, f"not a readable image ({library_says(error)})") from error
    reading.beat()
    size, components = tuple(int(n) for n in image.GetSize()), int(image.GetNumberOfComponentsPerPixel())
    if components != 1 or "complex" in image.GetPixelIDTypeAsString():
        what = f"{components} values a voxel" if components != 1 else "complex numbers"
        return reading.fault(Code.DTYPE, f"holds {what}; store one integer or floating-point number a voxel, one file a channel")
    if len(size) not in (2, 3):
        return reading.fault(Code.NOT_3D, f"has the shape {size}; must be three-dimensional, one file a channel")
    shape = (*size, 1)[:3]
    if not check_extent(reading, shape) or not _geometry(reading, image):
        return None
    reading.volume.shape = shape
    array = SimpleITK.GetArrayFromImage(image)
    take_values(reading, array.reshape(shape[::-1]).transpose(2, 1, 0))
    return None


def itk_refusal(path: Path) -> str | None:
    """Say why ITK, and with it nnU-Net's reader, refuses a file's header; None if it does not. The voxels are not read."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        return library_says(error).replace(f'"{path}"', "it")
    return None


def _geometry(reading: Reading, image: Any) -> bool:
    axes = image.GetDimension()
    spacing, direction, origin = np.ones(3), np.eye(3), np.zeros(3)
    spacing[:axes], origin[:axes] = image.GetSpacing(), image.GetOrigin()
    direction[:axes, :axes] = np.reshape(image.GetDirection(), (axes, axes))
    affine: npt.NDArray[np.float64] = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    return take_geometry(reading, tuple(float(value) for value in spacing), _LPS_TO_RAS @ affine)


# --- MetaImage ------------------------------------------------------------------------------------------------------
def _check_meta(reading: Reading, data: bytearray) -> int:
    """Compare a MetaImage header with the file. Returns the bytes of the voxels."""
    fields: dict[str, str] = {}
    start = 0
    while True:
        end = data.find(b"\n", start, _LONGEST_HEADER)
        if end < 0:
            raise DamagedFile(Code.NOT_READABLE, "not a MetaImage file: its header has no ElementDataFile")
        key, separator, value = data[start:end].decode("latin-1").partition("=")
        start = end + 1
        if not separator:
            raise DamagedFile(Code.NOT_READABLE, "not a MetaImage file: a line of its header is not 'key = value'")
        if key.strip() in fields:
            raise DamagedFile(Code.NOT_READABLE, f"not a MetaImage file: its header has {key.strip()[:40]!r} twice")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            break
    if fields["ElementDataFile"].upper() != "LOCAL":
        raise DamagedFile(Code.PATH_OUTSIDE, "its header names another file for the voxels; write header and voxels into one file")
    if fields.get("BinaryData", "True").lower() not in ("true", "1"):
        raise DamagedFile(Code.NOT_READABLE, "holds its voxels as text; write the file again in binary form")
    _require_axes(fields)
    spacing = fields.get("ElementSpacing", fields.get("ElementSize", "1"))
    _refuse_bad_spacing(reading, spacing.split())
    _note_contradictions(reading, fields)
    item = _META_TYPES.get(fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY"))
    if item is None:
        raise DamagedFile(Code.DTYPE, f"holds {fields.get('ElementType', 'voxels of no type')!r}; store integers or floating-point numbers")
    expected = _count(fields.get("DimSize", "").split()) * item * int(fields.get("ElementNumberOfChannels", "1"))
    if fields.get("CompressedData", "False").lower() in ("true", "1"):
        _check_deflated(reading, data, start, expected, wbits=47)
    else:
        _check_size(len(data) - start, expected)
    return expected


def _note_contradictions(reading: Reading, fields: Mapping[str, str]) -> None:
    """Warn where two fields of a MetaImage header contradict each other."""
    for names in _META_SYNONYMS:
        said = {name: fields[name] for name in names if name in fields}
        if len({tuple(float(number) for number in value.split()) for value in said.values()}) > 1:
            shown = " and ".join(f"{name} = {value[:80]}" for name, value in said.items())
            reading.fault(
                Code.GEOMETRY_CONTRADICTS, f"has {shown}; programs take the one or the other, write the file again", severity="warning"
            )
    claimed = fields.get("AnatomicalOrientation", "").upper()
    matrix = next((fields[name].split() for name in _META_SYNONYMS[0] if name in fields), [])
    if re.fullmatch("[RLAPSI]{3}", claimed) and len(matrix) == 9:
        directions = np.array([float(value) for value in matrix]).reshape(3, 3)  # MetaIO stores one after the other
        nearest = [(direction, int(np.abs(direction).argmax())) for direction in directions]
        order = "".join("RAI"[axis] if direction[axis] > 0 else "LPS"[axis] for direction, axis in nearest)
        if order != claimed:
            message = (
                f"has AnatomicalOrientation = {claimed} where its TransformMatrix means {order}; "
                "nnU-Net uses the matrix: check which is right and write the file again"
            )
            reading.fault(Code.GEOMETRY_CONTRADICTS, message, severity="warning")


def _require_axes(fields: Mapping[str, str]) -> None:
    """Refuse headers with more axes than ITK's arrays hold, since ITK would write beyond them."""
    promised, sizes = fields.get("NDims", ""), fields.get("DimSize", "").split()
    if promised != str(len(sizes)) or len(sizes) > _META_AXES:
        raise DamagedFile(
            Code.NOT_READABLE, f"its header promises {promised[:40] or 'no'} axes and has {len(sizes)} sizes; write the file again"
        )


# --- NRRD -----------------------------------------------------------------------------------------------------------
def _check_nrrd(reading: Reading, data: bytearray) -> int:
    """Compare an NRRD header with the file. Returns the bytes of the voxels."""
    if data[:4] != b"NRRD":
        raise DamagedFile(Code.NOT_READABLE, "not an NRRD file")
    ends = [(place, len(mark)) for mark in (b"\n\n", b"\r\n\r\n") if (place := data.find(mark, 0, _LONGEST_HEADER)) >= 0]
    if not ends:
        raise DamagedFile(Code.NOT_READABLE, "the NRRD header does not end, or names another file for the voxels")
    place, length = min(ends)
    fields: dict[str, str] = {}
    for line in data[:place].decode("latin-1").splitlines()[1:]:
        key, separator, value = line.partition(":")
        if separator and not line.startswith("#") and not value.startswith("="):
            fields[key.strip().lower()] = value.strip()
    if "data file" in fields or "datafile" in fields:
        raise DamagedFile(Code.PATH_OUTSIDE, "its header names another file for the voxels; write header and voxels into one file")
    if any(fields.get(key, "0") not in ("", "0") for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise DamagedFile(Code.NOT_READABLE, "skips lines or bytes before its voxels; write the file again without")
    _refuse_bad_spacing(reading, [value for value in fields.get("spacings", "").split() if value.lower() != "nan"])
    item = _NRRD_TYPES.get(fields.get("type", "").lower())
    if item is None:
        raise DamagedFile(Code.DTYPE, f"holds {fields.get('type', 'voxels of no type')!r}; store integers or floating-point numbers")
    expected, encoding = _count(fields.get("sizes", "").split()) * item, fields.get("encoding", "").lower()
    if encoding in ("gzip", "gz"):
        _check_deflated(reading, data, place + length, expected, wbits=31)
    elif encoding == "raw":
        _check_size(len(data) - place - length, expected)
    else:
        raise DamagedFile(Code.NOT_READABLE, f"has the encoding {encoding!r}; write the file again with raw or gzip encoding")
    return expected


# --- both -----------------------------------------------------------------------------------------------------------
def _refuse_bad_spacing(reading: Reading, values: list[str]) -> None:
    numbers = [float(value) for value in values]
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise DamagedFile(Code.SPACING_INVALID, f"has the spacing {shown_mm(numbers)}; each must be more than 0")


def _count(sizes: list[str]) -> int:
    numbers = [int(size) for size in sizes]
    if not numbers or min(numbers) < 1:
        raise DamagedFile(Code.NOT_3D, f"has the shape {tuple(numbers)}; must be three-dimensional")
    return math.prod(numbers)


def _check_size(held: int, expected: int) -> None:
    if held < expected:
        raise DamagedFile(Code.TRUNCATED, f"holds {held} bytes of voxels where its header promises {expected}; copy the file again")


def _check_deflated(reading: Reading, data: bytearray, start: int, expected: int, *, wbits: int) -> None:
    """Decompress to the end and discard the result, since zlib and gzip have a checksum of the whole."""
    inflate, held, place = zlib.decompressobj(wbits=wbits), 0, start
    try:
        while not inflate.eof and place < len(data):
            chunk = data[place : place + CHUNK]
            held += len(inflate.decompress(chunk, CHUNK * 16))
            place += len(chunk) - len(inflate.unconsumed_tail)
            reading.beat()
            if held > expected:
                raise DamagedFile(Code.NOT_READABLE, "holds more data than its header says")
    except zlib.error as error:
        raise DamagedFile(Code.GZIP_DAMAGED, f"compressed data is damaged ({library_says(error)}); copy the file again") from error
    if not inflate.eof:
        raise DamagedFile(Code.TRUNCATED, f"compressed data ends early, after {len(data)} bytes; copy the file again")
    _check_size(held, expected)
