"""Reading one NIfTI file to its last byte: hash, gzip check, header and values in a single pass over the file."""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import Fault, JobError
from nnunet_jobs.dataset.faults import Code

_CHUNK = 1 << 20
_HEADER = 540  # bytes, of NIfTI-2; NIfTI-1 has 348
_AFTER_DATA = 1 << 16  # bytes that may follow the voxels; more means that header and data do not belong together
_ORTHOGONAL = 1e-3


@dataclass(slots=True, kw_only=True)
class Volume:
    """What one image or label file holds.

    Attributes:
        sha256: of the file's bytes. shape: voxels along x, y, z (and channels). spacing: mm along x, y, z.
        affine: voxel to world in mm, 4 x 4. values: different values, for labels only. array: the voxels, of a readable file.
        faults: what is wrong with the file alone.
    """

    sha256: str = ""
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    affine: npt.NDArray[np.float64] | None = None
    values: tuple[int, ...] = ()
    array: npt.NDArray[Any] | None = None
    faults: list[Fault] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether shape, spacing and affine can be compared with other files."""
        return self.affine is not None


class _Damaged(Exception):
    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_volume(path: Path, *, case: str, name: str, label: bool, beat: Callable[[], None]) -> Volume:
    """Read a file whole and look for faults of its own. Never raises for bad content; never blocks on pipes and devices.

    Args:
        path: the file. case, name: for the faults. label: check values as labels, else as intensities.
        beat: called for each MiB; it may raise to stop.
    """
    volume = Volume()

    def fault(code: Code, message: str) -> None:
        volume.faults.append(Fault(code=code, case=case, file=name, message=message))

    try:
        data, volume.sha256 = _read(path, beat)
        _parse(volume, data, fault, label)
    except _Damaged as damaged:
        fault(damaged.code, str(damaged))
    except OSError as error:
        fault(Code.UNREADABLE, f"cannot be read: {error.strerror or error}")
    except (JobError, MemoryError):
        raise
    except Exception as error:  # bad content makes nibabel raise almost anything; whatever it is, it is this file's fault
        fault(Code.NOT_NIFTI, f"not a readable NIfTI file ({error})")
    return volume


def hash_file(path: Path, beat: Callable[[], None]) -> str:
    """sha256 of a regular file; ``beat`` is called for each MiB."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            beat()
    return digest.hexdigest()


def open_regular(path: Path) -> io.FileIO:
    """Open for reading, but refuse pipes, devices and folders at once instead of waiting on them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "not a regular file")
    return io.FileIO(fd, "rb")


def _read(path: Path, beat: Callable[[], None]) -> tuple[bytearray, str]:
    """The uncompressed content and the sha256 of the file."""
    digest, out = hashlib.sha256(), bytearray()
    compressed = path.name.endswith(".gz")
    inflate = zlib.decompressobj(wbits=31)
    limit: int | None = None
    with open_regular(path) as file:
        first = True
        while chunk := file.read(_CHUNK):
            beat()
            digest.update(chunk)
            if not compressed:
                out += chunk
                continue
            if first and chunk[:2] != b"\x1f\x8b":
                raise _Damaged(Code.NOT_GZIP, "the name ends in .gz but the file is not compressed; rename or compress it")
            first = False
            while chunk:
                if inflate.eof:  # gzip files may be several streams in a row, padded with zeros
                    chunk = chunk.lstrip(b"\0")
                    if not chunk:
                        break
                    inflate = zlib.decompressobj(wbits=31)
                try:
                    out += inflate.decompress(chunk, _CHUNK * 16)
                except zlib.error as error:
                    raise _Damaged(Code.GZIP_DAMAGED, f"gzip data is damaged ({error}); copy the file again") from error
                chunk = inflate.unconsumed_tail or (inflate.unused_data if inflate.eof else b"")
                if limit is None and len(out) >= _HEADER:
                    limit = _expected_size(out)
                    if limit is None:
                        raise _Damaged(Code.NOT_NIFTI, "not a readable NIfTI file")
                if limit is not None and len(out) > limit + _AFTER_DATA:
                    raise _Damaged(Code.NOT_NIFTI, "holds far more data than its header says")
        size = file.tell()
    if not size:
        raise _Damaged(Code.EMPTY_FILE, "has no bytes; copy the file again")
    if compressed and not inflate.eof:
        raise _Damaged(Code.TRUNCATED, f"gzip data ends early, after {size} bytes; copy the file again")
    return out, digest.hexdigest()


def _expected_size(data: bytearray) -> int | None:
    """Bytes that the header promises; None when there is no readable header."""
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


def _parse(volume: Volume, data: bytearray, fault: Callable[[Code, str], None], label: bool) -> None:
    import nibabel

    expected = _expected_size(data)
    if expected is not None and len(data) < expected:
        raise _Damaged(Code.TRUNCATED, f"holds {len(data)} bytes where its header promises {expected}; copy the file again")
    try:
        header = _header(data)
        kind = nibabel.Nifti1Image if isinstance(header, nibabel.Nifti1Header) and header["sizeof_hdr"] == 348 else nibabel.Nifti2Image
        image = kind.from_stream(io.BytesIO(data))
        shape, dtype = tuple(int(n) for n in image.shape), image.get_data_dtype()
    except Exception as error:  # nibabel raises many types for bad headers
        raise _Damaged(Code.NOT_NIFTI, f"not a readable NIfTI file ({error})") from error
    if dtype.kind not in "iufb" or dtype.itemsize > 8:
        what = "complex numbers" if dtype.kind == "c" else "colours" if dtype.fields else str(dtype)
        return fault(Code.DTYPE, f"holds {what}; store whole or floating-point numbers of at most 64 bits")
    if len(shape) not in ((3,) if label else (3, 4)) or min(shape) < 1:
        return fault(Code.NOT_3D, f"has the shape {shape}; must be three-dimensional")
    if sum(n > 1 for n in shape[:3]) < 2:
        return fault(Code.NOT_3D, f"has the shape {shape}; a single voxel or a line of voxels is no image")
    if not _geometry(volume, header, image, fault):
        return None
    volume.shape = shape
    array = volume.array = np.asanyarray(image.dataobj)
    if label:
        volume.values = _label_values(array, fault)
    else:
        _finite(array, fault)
    return None


def _geometry(volume: Volume, header: Any, image: Any, fault: Callable[[Code, str], None]) -> bool:
    spacing = tuple(float(value) for value in header["pixdim"][1:4])  # nibabel's own reader mends zeros
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        fault(Code.SPACING_INVALID, f"has the spacing {spacing} mm; each must be more than 0")
        return False
    affine = np.asarray(image.affine, dtype=np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all():
        fault(Code.AFFINE_INVALID, "has an affine with NaN, infinite or zero columns; write the file again with a valid sform or qform")
        return False
    axes = affine[:3, :3] / lengths
    if np.abs(axes.T @ axes - np.eye(3)).max() > _ORTHOGONAL:
        fault(Code.AFFINE_INVALID, "has a sheared affine; nnU-Net's reader refuses it, resample the image to orthogonal axes")
        return False
    volume.spacing, volume.affine = spacing, affine
    return True


def _finite(array: npt.NDArray[Any], fault: Callable[[Code, str], None]) -> None:
    if array.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        if math.isfinite(float(array.sum(dtype=np.float64))):
            return
    nans, infinities = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    if nans:
        fault(Code.VALUE_NAN, f"has {nans} NaN voxels; nnU-Net's reader would turn them into 0, replace them by a sensible value")
    if infinities:
        fault(Code.VALUE_INF, f"has {infinities} infinite voxels; replace them by a sensible value")


def _label_values(array: npt.NDArray[Any], fault: Callable[[Code, str], None]) -> tuple[int, ...]:
    if array.dtype == np.uint8:
        return tuple(int(value) for value in np.flatnonzero(np.bincount(array.ravel(order="K"), minlength=256)))
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            fault(Code.VALUE_NAN, "has NaN or infinite voxels; labels must be whole numbers")
            return ()
        values = np.unique(array)
        broken = values[values != np.rint(values)]
        if broken.size:
            shown = ", ".join(f"{value:g}" for value in broken[:5])
            fault(Code.LABEL_NOT_INTEGER, f"has values that are not whole numbers ({shown}{', ...' if broken.size > 5 else ''})")
            return ()
        return tuple(int(value) for value in values)
    return tuple(int(value) for value in np.unique(array))
