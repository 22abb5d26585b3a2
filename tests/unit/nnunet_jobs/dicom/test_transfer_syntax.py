"""Stored values are the same whatever the transfer syntax: grey values of either interpretation and sign, of 8, 12 and 16 bits."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from nnunet_jobs.dicom import convert
from support.dicom import save, slices

SHAPE = (13, 10, 2)  # an odd number of bytes in a frame of 8 bits would need padding; so do these rows


def native(path: Path) -> None:
    """As it is."""


def pydicom_encoder(syntax: str, path: Path) -> None:
    ds = pydicom.dcmread(path)
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(path)


def dcmtk(command: str, path: Path) -> None:
    subprocess.run([*command.split(), str(path), str(path)], check=True, capture_output=True)


def jpeg2000(path: Path) -> None:
    """By a library of its own: neither GDCM nor pydicom's plugins wrote it."""
    from imagecodecs import jpeg2k_encode

    ds = pydicom.dcmread(path)
    stream = jpeg2k_encode(ds.pixel_array, level=0, codecformat="j2k", reversible=True, bitspersample=int(ds.BitsStored))
    ds.PixelData = encapsulate([stream])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.save_as(path)


SYNTAXES: dict[str, Callable[[Path], None]] = {
    "native": native,
    "implicit": functools.partial(dcmtk, "dcmconv +ti"),
    "big endian": functools.partial(dcmtk, "dcmconv +tb"),
    "deflated": functools.partial(dcmtk, "dcmconv +td"),
    "RLE": functools.partial(pydicom_encoder, RLELossless),
    "RLE by DCMTK": functools.partial(dcmtk, "dcmcrle"),
    "JPEG-LS": functools.partial(pydicom_encoder, JPEGLSLossless),
    "JPEG-LS by DCMTK": functools.partial(dcmtk, "dcmcjpls +el"),
    "JPEG 2000": jpeg2000,
    "JPEG lossless": functools.partial(dcmtk, "dcmcjpeg +el"),
    "JPEG lossless SV1": functools.partial(dcmtk, "dcmcjpeg +e1"),
}
KINDS = [(photometric, bits, signed) for photometric in ("MONOCHROME1", "MONOCHROME2") for bits in (8, 12, 16) for signed in (False, True)]


@pytest.mark.parametrize("how", SYNTAXES)
def test_stored_values_do_not_depend_on_the_transfer_syntax(tmp_path: Path, how: str) -> None:
    program = str(getattr(SYNTAXES[how], "args", ("",))[0]).partition(" ")[0]
    if program.startswith("dcm") and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (package dcmtk)")
    wrong, written = [], 0
    for number, (photometric, bits, signed) in enumerate(KINDS):
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        stored = np.random.default_rng(number).integers(low, high + 1, SHAPE).astype(np.int32)
        stored[0, 0], stored[1, 0] = low, high
        allocated = 8 if bits == 8 else 16
        kind = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
        made = slices(
            stored=stored, BitsAllocated=allocated, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=int(signed),
            PhotometricInterpretation=photometric,
        )  # fmt: skip
        for k, ds in enumerate(made):
            ds.PixelData = np.ascontiguousarray(stored[:, :, k].T.astype(kind)).tobytes()
            if allocated == 8:
                ds["PixelData"].VR = "OB"
        folder = save(tmp_path / str(number), made)
        for k, path in enumerate(sorted(folder.iterdir())):
            try:
                SYNTAXES[how](path)
            except RuntimeError:  # pyjpegls runs out of room for some noise of 8 bits
                continue
            written += 1
            read = convert.stored_values(path)[0].T
            if not np.array_equal(read, stored[:, :, k]):
                wrong.append((photometric, bits, signed, stored[0, 0, k], read[0, 0]))
    assert wrong == []
    assert written >= 2 * len(KINDS) - 4
