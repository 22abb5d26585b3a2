"""Reads a NIfTI file to its last byte: hash, gzip check, header and values in a single pass over the file."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_jobs.contract.storage.files import open_regular
from nnunet_jobs.dataset.readers.nifti_geometry import take_nifti_geometry
from nnunet_jobs.dataset.readers.volume import CHUNK, DamagedFile, Reading, check_extent, take_values
from nnunet_jobs.dataset.readers.words import library_says
from nnunet_jobs.faults.codes import Code

_HEADER, _NIFTI_1 = 540, 348  # bytes, of NIfTI-2 and NIfTI-1
_FIRST = 4096  # bytes of a compressed file that hold the header
_AFTER_DATA = 1 << 16  # bytes that may follow the voxels; more means that header and data do not belong together
_DEFLATE = 1032  # the most that deflate can shrink anything
_SERIOUS = 40  # nibabel's level of what it refuses to read (magic, offsets, data type); it fixes lesser problems
_QUIET = logging.getLogger("nnunet_jobs.nifti_header")
_QUIET.disabled = True  # what matters is reported as a fault


def read_nifti(reading: Reading) -> None:
    """Fill the volume from a ``.nii`` or ``.nii.gz`` file.

    Raises:
        DamagedFile: It cannot be read. nibabel may raise other errors for bad content.
        OSError: It cannot be read.
        MemoryError: There is not enough memory to read it.
    """
    data, reading.volume.sha256 = _read(reading)
    _parse(reading, data)


def promised_voxels(path: Path) -> int:
    """Return the number of voxels that a file's header promises; 0 if there is no readable header.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    with open_regular(path) as file:
        start = file.read(_FIRST)
    if path.name.endswith(".gz"):
        inflate = zlib.decompressobj(wbits=31)
        with contextlib.suppress(zlib.error):
            start = inflate.decompress(start, _NIFTI_1)  # only the header: the rest is not checked yet
            if 540 in {int.from_bytes(start[:4], order) for order in ("little", "big")}:
                start += inflate.decompress(inflate.unconsumed_tail, _HEADER - _NIFTI_1)
    try:
        return max(0, math.prod(int(n) for n in _header(bytearray(start)).get_data_shape()))
    except Exception:  # nibabel raises many types for bad headers
        return 0


def _read(reading: Reading) -> tuple[bytearray, str]:
    """Return the uncompressed content and the sha256 of the file."""
    digest, out = hashlib.sha256(), bytearray()
    compressed = reading.path.name.endswith(".gz")
    inflate = zlib.decompressobj(wbits=31)
    limit: int | None = None
    with open_regular(reading.path) as file:
        on_disk = os.fstat(file.fileno()).st_size
        if not compressed:
            reading.reserve(2 * on_disk)
        first = True
        while chunk := file.read(CHUNK):
            reading.beat()
            digest.update(chunk)
            if not compressed:
                out += chunk
                continue
            if first and chunk[:2] != b"\x1f\x8b":
                raise DamagedFile(Code.NOT_GZIP, "the name ends in .gz but the file is not compressed; rename or compress it")
            first = False
            while chunk:
                if inflate.eof:  # gzip files may be several streams in a row, padded with zeros
                    chunk = chunk.lstrip(b"\0")
                    if not chunk:
                        break
                    inflate = zlib.decompressobj(wbits=31)
                try:
                    out += inflate.decompress(chunk, CHUNK * 16)
                except zlib.error as error:
                    raise DamagedFile(Code.GZIP_DAMAGED, f"gzip data is damaged ({library_says(error)}); copy the file again") from error
                reading.beat()
                chunk = inflate.unconsumed_tail or (inflate.unused_data if inflate.eof else b"")
                if limit is None and len(out) >= _HEADER:
                    limit = _expected_size(out)
                    if limit is None:
                        raise DamagedFile(Code.NOT_NIFTI, "not a readable NIfTI file")
                    reading.reserve(2 * min(limit, on_disk * _DEFLATE))
                if limit is not None and len(out) > limit + _AFTER_DATA:
                    raise DamagedFile(Code.NOT_NIFTI, "holds far more data than its header says")
        size = file.tell()
    if not size:
        raise DamagedFile(Code.EMPTY_FILE, "has no bytes; copy the file again")
    if compressed and not inflate.eof:
        raise DamagedFile(Code.TRUNCATED, f"gzip data ends early, after {size} bytes; copy the file again")
    return out, digest.hexdigest()


def _expected_size(data: bytearray) -> int | None:
    """Return the number of bytes that the header promises; None if there is no readable header."""
    try:
        header = _header(data)
        count = math.prod(int(n) for n in header.get_data_shape())
        return int(header["vox_offset"]) + count * int(header.get_data_dtype().itemsize)
    except Exception:  # nibabel raises many types for bad headers; the parser reports them with their text
        return None


def _header(data: bytearray) -> Any:
    import nibabel

    sizes = {int.from_bytes(data[:4], order) for order in ("little", "big")}
    kind = nibabel.Nifti1Header if 348 in sizes else nibabel.Nifti2Header if 540 in sizes else None
    if kind is None:
        raise ValueError("no NIfTI header")
    size = kind.template_dtype.itemsize
    if len(data) < size:
        raise ValueError("the header is cut off")
    return kind(bytes(data[:size]), check=False)


def _parse(reading: Reading, data: bytearray) -> None:
    expected = _expected_size(data)
    if expected is not None and len(data) < expected:
        raise DamagedFile(Code.TRUNCATED, f"holds {len(data)} bytes where its header promises {expected}; copy the file again")
    try:
        header = _header(data)
        shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        start = int(header["vox_offset"])
        header.copy().check_fix(logger=_QUIET, error_level=_SERIOUS)
    except Exception as error:  # nibabel raises many types for bad headers
        raise DamagedFile(Code.NOT_NIFTI, f"not a readable NIfTI file ({library_says(error)})") from error
    if dtype.kind not in "iufb" or dtype.itemsize > 8:
        what = "complex numbers" if dtype.kind == "c" else "colours" if dtype.fields else str(dtype)
        return reading.fault(Code.DTYPE, f"holds {what}; store integers or floating-point numbers of at most 64 bits")
    flat = len(shape) == 2
    if len(shape) not in ((2, 3) if reading.label else (2, 3, 4)) or min(shape) < 1:
        return reading.fault(Code.NOT_3D, f"has the shape {shape}; must be three-dimensional")
    if flat and not reading.path.name.endswith(".gz"):
        message = f"has the shape {shape}; nnU-Net does not read .nii files with two axes; add a third axis of 1 or compress it to .nii.gz"
        return reading.fault(Code.NOT_3D, message)
    shape = (*shape, 1) if flat else shape
    if not check_extent(reading, shape) or not take_nifti_geometry(reading, header, shape[:3], flat=flat):
        return None
    reading.volume.shape = shape
    count = math.prod(shape)
    reading.reserve(count * (16 if slope is not None else 8))
    array = np.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape, order="F")
    if slope is not None and (slope, intercept) != (1, 0):
        array = array * np.float64(slope) + np.float64(intercept)
    take_values(reading, array)
    return None
