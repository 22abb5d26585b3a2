"""Reads natural images (.png, .bmp, 2D .tif with colours as channels) and 3D TIFF as nnU-Net reads them, to the last byte."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_jobs.contract.storage.files import open_regular
from nnunet_jobs.dataset.readers.volume import Array, DamagedFile, Reading, check_extent, read_bytes, take_geometry, take_values
from nnunet_jobs.dataset.readers.words import library_says
from nnunet_jobs.faults.codes import Code

_PNG = b"\x89PNG\r\n\x1a\n"
_MODES = {"1": 1, "L": 1, "I": 1, "F": 1, "I;16": 1, "I;16B": 1, "RGB": 3, "RGBA": 4}  # Pillow's, with the channels nnU-Net sees
_CHANNEL = re.compile(r"_\d{4}$")
_SIDECAR = 1 << 16  # bytes; a spacing needs a hundred


def read_picture(reading: Reading) -> None:
    """Fill the volume from a ``.png``, ``.bmp``, ``.tif`` or ``.tiff`` file.

    Raises:
        DamagedFile: It cannot be read. The library may raise other errors for bad content.
        OSError: It cannot be read.
        MemoryError: There is not enough memory to read it.
    """
    data = bytes(read_bytes(reading))
    tiff = reading.path.name.endswith((".tif", ".tiff"))
    array = _tiff(reading, data) if tiff else _pillow(reading, data)
    if array is None:
        return None
    reading.beat()
    if array.dtype.kind not in "iufb" or array.dtype.itemsize > 8:
        return reading.fault(Code.DTYPE, f"holds {array.dtype}; store integers or floating-point numbers of at most 64 bits")
    colours = array.ndim == 3 and array.shape[2] in (3, 4) and not reading.path.name.endswith(".tiff")
    if array.ndim == 2 and not reading.path.name.endswith(".tiff"):
        _take_flat(reading, array[..., None])
    elif colours:
        if reading.label:
            return reading.fault(Code.DTYPE, "holds colours; a label needs one integer a pixel, store it in grey")
        _take_flat(reading, array)
    elif array.ndim == 3 and tiff:
        _take_stack(reading, array)
    else:
        fix = "nnU-Net does not read a 2D .tiff; rename it to .tif" if array.ndim == 2 else "store one 2D or 3D image a file"
        reading.fault(Code.NOT_3D, f"has the shape {array.shape}; {fix}")
    return None


def _take_flat(reading: Reading, array: Array) -> None:
    """Take a 2D image with its colours last; rows are y."""
    turned = array.transpose(1, 0, 2)[:, :, None, :]
    if not check_extent(reading, turned.shape[:3]) or not take_geometry(reading, (1.0, 1.0, 1.0), np.eye(4), millimetres=False):
        return
    reading.volume.planar = True
    reading.volume.shape, reading.volume.channels = turned.shape[:3], turned.shape[3]
    take_values(reading, turned[..., 0] if turned.shape[3] == 1 else turned)


def _take_stack(reading: Reading, array: Array) -> None:
    """Take a 3D TIFF, with its spacing from the JSON file beside it, as in nnU-Net."""
    turned = array.transpose(2, 1, 0)
    spacing, known = spacing_beside(reading.path, label=reading.label)
    if not check_extent(reading, turned.shape) or not take_geometry(reading, spacing, np.diag([*spacing, 1.0]), millimetres=known):
        return
    if not known and not reading.label:
        message = "has no JSON file with its spacing beside it, so nnU-Net takes 1 mm; add one if that is wrong"
        reading.fault(Code.SPACING_ASSUMED, message)
    reading.volume.shape = turned.shape
    take_values(reading, turned)


def spacing_beside(tiff: Path, *, label: bool) -> tuple[tuple[float, ...], bool]:
    """Return the spacing of a 3D TIFF along x, y, z in mm, and whether it is from the JSON file that nnU-Net looks for.

    Raises:
        DamagedFile: There is a JSON file, and it does not hold three numbers.
    """
    stem = tiff.name.rsplit(".", 1)[0]
    path = tiff.with_name((stem if label else _CHANNEL.sub("", stem)) + ".json")
    try:
        with open_regular(path) as file:
            found = json.loads(file.read(_SIDECAR))["spacing"]
        spacing = tuple(float(value) for value in reversed(found))
    except FileNotFoundError:
        return (1.0, 1.0, 1.0), False
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "" if isinstance(error, KeyError | TypeError) else f" ({library_says(error)})"
        raise DamagedFile(Code.SPACING_INVALID, f'{path.name} beside it must hold {{"spacing": [z, y, x]}} in mm{reason}') from error
    if len(spacing) != 3:
        raise DamagedFile(Code.SPACING_INVALID, f"{path.name} beside it has {len(spacing)} spacings; it needs three, z, y, x in mm")
    return spacing, True


# --- png and bmp ----------------------------------------------------------------------------------------------------
def _pillow(reading: Reading, data: bytes) -> Array | None:
    from PIL import Image

    kind = reading.path.name.rsplit(".", 1)[1].upper()
    if kind == "PNG":
        _check_chunks(data)
    Image.MAX_IMAGE_PIXELS = None  # the memory limit protects this host instead
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        if image.mode == "P" or image.mode not in _MODES:
            what = "palette colours" if image.mode in ("P", "PA") else f"pixels of the kind {image.mode}"
            reading.fault(Code.DTYPE, f"holds {what}; store grey values, or RGB for images with colours")
            return None
        if getattr(image, "n_frames", 1) > 1:
            reading.fault(Code.NOT_3D, f"holds {image.n_frames} frames; store one image a file")
            return None
        reading.reserve(image.width * image.height * (4 + 8 * _MODES[image.mode]))
        try:
            image.load()
        except OSError as error:
            code = Code.TRUNCATED if "truncated" in str(error) else Code.NOT_READABLE
            raise DamagedFile(code, f"cannot be decoded ({library_says(error)}); copy the file again") from error
        return np.asarray(image)


def _check_chunks(data: bytes) -> None:
    """Check every chunk of a PNG file, since Pillow does not check the checksums of the pixels."""
    if not data.startswith(_PNG):
        raise DamagedFile(Code.NOT_READABLE, "not a PNG file")
    place = len(_PNG)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind, end = data[place + 4 : place + 8], place + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise DamagedFile(Code.CHECKSUM_WRONG, f"the checksum of its {kind.decode('latin-1')!r} part is wrong; copy the file again")
        if kind == b"IEND":
            return
        place = end
    raise DamagedFile(Code.TRUNCATED, f"ends early, after {len(data)} bytes; copy the file again")


# --- tiff -----------------------------------------------------------------------------------------------------------
def _tiff(reading: Reading, data: bytes) -> Array | None:
    import tifffile

    said: list[str] = []
    handler = _Collect(said)
    logger = logging.getLogger("tifffile")  # it logs the damage that it ignored
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            needed = 0
            for page in file.pages:
                reading.beat()
                needed += _check_page(page, len(data))
            if said:
                raise DamagedFile(
                    Code.TRUNCATED if "offset" in said[0] else Code.NOT_READABLE,
                    f"is damaged ({library_says(said[0])}); copy the file again",
                )
            if len(file.series) != 1:
                reading.fault(Code.NOT_3D, f"holds {len(file.series)} images of different kinds; store one image a file")
                return None
            reading.reserve(4 * needed)
            array: Array = file.asarray(maxworkers=1)
        if said:
            raise DamagedFile(Code.NOT_READABLE, f"is damaged ({library_says(said[0])}); copy the file again")
        return array
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _check_page(page: Any, size: int) -> int:
    """Check that all of a page's pixels are in the file. Returns its bytes in memory."""
    page = page.aspage()
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset + count > size:
            raise DamagedFile(Code.TRUNCATED, f"holds {size} bytes where its tables promise {offset + count}; copy the file again")
    pixels = math.prod(page.shape) * page.dtype.itemsize if page.dtype is not None else 0
    if page.compression == 1 and sum(page.databytecounts) < pixels * page.bitspersample // (8 * page.dtype.itemsize):
        raise DamagedFile(Code.TRUNCATED, f"holds fewer pixels than its shape {page.shape} needs; copy the file again")
    return int(pixels)


class _Collect(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
