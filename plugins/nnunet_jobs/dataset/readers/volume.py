"""Defines what all readers of image files share: the volume to fill, the checks of geometry and values, and reading bytes once."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.storage.files import open_regular
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.faults.fixes import FAULT_INFO

CHUNK = 1 << 20
Array = npt.NDArray[Any]
Beat = Callable[[], None]
Reserve = Callable[[int], None]
_ORTHOGONAL = 1e-3
_SMALLEST, _LARGEST = 0.01, 50.0  # mm; no scanner makes voxels that are smaller along every axis, or larger along one
_PROBE = 4096  # voxels that usually suffice to see that an image is not constant
_COUNTED = 1 << 16  # label values below are counted, which is much faster than sorting


@dataclass(slots=True, kw_only=True)
class Volume:
    """The content of one image or label file.

    Attributes:
        sha256: SHA-256 of the file's bytes.
        shape: Voxels along x, y, z (and channels, where they are the last axis of a 4D file).
        spacing: mm along x, y, z.
        affine: Voxel to world in mm, 4 x 4, RAS.
        values: Different values, for labels only.
        channels: Colours of a natural image.
        array: The voxels, in the order of ``shape``, colours last.
        planar: The file has two axes only, so that nnU-Net's reader invents a large spacing for the third.
        faults: Faults of the file alone.
    """

    sha256: str = ""
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    affine: npt.NDArray[np.float64] | None = None
    values: tuple[int, ...] = ()
    channels: int = 1
    array: Array | None = None
    planar: bool = False
    faults: list[Fault] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether shape, spacing and affine can be compared with other files."""
        return self.affine is not None

    @property
    def sound(self) -> bool:
        """Whether the file has no error of its own."""
        return not any(fault.severity == "error" for fault in self.faults)


@dataclass(slots=True, kw_only=True)
class Reading:
    """One file that is being read: it collects faults, reports heartbeats and reserves memory.

    Attributes:
        volume: The volume to fill.
        label: Read as label values, else as intensities.
        case: Id of the case, for the faults.
        name: Name of the file, for the faults.
        beat: Called for each MiB; may raise to stop.
        reserve: Called with bytes before they are needed; may raise MemoryError.
        reader: Class name of nnU-Net's reader that will read the file, or a copy of it, later.
    """

    volume: Volume
    path: Path
    case: str
    name: str
    label: bool
    beat: Beat
    reserve: Reserve
    reader: str = ""

    def fault(self, code: Code, message: str, *, severity: str | None = None) -> None:
        """Add a fault. ``severity`` is for codes that have both; the default is the code's own."""
        severity = severity or FAULT_INFO[code].severity
        self.volume.faults.append(Fault(code=code, severity=severity, case=self.case, file=self.name, message=message))


class DamagedFile(Exception):
    """The file cannot be read further."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def hash_file(path: Path, beat: Beat) -> str:
    """Return the sha256 of a regular file; ``beat`` is called for each MiB."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            beat()
    return digest.hexdigest()


def read_bytes(reading: Reading) -> bytearray:
    """Return all bytes of the file, and fill in the sha256.

    Raises:
        DamagedFile: The file is empty.
    """
    digest, data = hashlib.sha256(), bytearray()
    with open_regular(reading.path) as file:
        reading.reserve(2 * os.fstat(file.fileno()).st_size)
        while chunk := file.read(CHUNK):
            reading.beat()
            digest.update(chunk)
            data += chunk
    if not data:
        raise DamagedFile(Code.EMPTY_FILE, "has no bytes; copy the file again")
    reading.volume.sha256 = digest.hexdigest()
    return data


def shown_mm(spacing: Sequence[float], digits: int = 6) -> str:
    """Format a spacing for messages."""
    return "(" + ", ".join(f"{value:.{digits}g}" for value in spacing) + ") mm"


def take_geometry(reading: Reading, spacing: tuple[float, ...], affine: npt.NDArray[np.float64], *, millimetres: bool = True) -> bool:
    """Check spacing (mm) and affine, and put them into the volume where they are sound. ``millimetres`` is False for natural images."""
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        reading.fault(Code.SPACING_INVALID, f"has the spacing {shown_mm(spacing)}; each must be more than 0")
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all():
        message = "has an affine with NaN, infinite or zero columns; write the file again with a valid sform or qform"
        reading.fault(Code.AFFINE_INVALID, message)
        return False
    if skew(affine) > _ORTHOGONAL:
        message = "has axes that are not orthogonal (a sheared affine), which nnU-Net ignores or refuses; resample it to orthogonal axes"
        reading.fault(Code.AFFINE_INVALID, message)
        return False
    if millimetres and (max(spacing) < _SMALLEST or max(spacing) > _LARGEST):
        reading.fault(Code.UNITS_SUSPICIOUS, f"has the spacing {shown_mm(spacing)}; check whether it was meant in another unit")
    reading.volume.spacing, reading.volume.affine = spacing, affine
    return True


def skew(affine: npt.NDArray[np.float64] | None) -> float:
    """Return how far the axes of an affine are from orthogonal: the largest cosine between two of them."""
    if affine is None:
        return 0.0
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def check_extent(reading: Reading, shape: tuple[int, ...]) -> bool:
    """Refuse images that are a single voxel or line."""
    if sum(n > 1 for n in shape[:3]) < 2:
        reading.fault(Code.NOT_3D, f"has the shape {shape}; a single voxel or a line of voxels is not an image")
        return False
    return True


def take_values(reading: Reading, array: Array) -> None:
    """Check the voxels and keep them: label values must be valid, intensities finite and not all the same."""
    reading.volume.array = array
    if reading.label:
        reading.volume.values = _label_values(reading, array)
    else:
        _check_intensities(reading, array)


def _check_intensities(reading: Reading, array: Array) -> None:
    channels = [array[..., number] for number in range(array.shape[3])] if array.ndim > 3 else [array]
    for number, channel in enumerate(channels):
        reading.beat()
        flat = channel.ravel(order="K")
        probe = flat[:_PROBE]
        if array.dtype.kind != "f" and (probe != probe[0]).any():
            continue
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            _report_not_finite(reading, array)
            return
        if low == high:
            where = f" in channel {number}" if len(channels) > 1 else ""
            reading.fault(Code.IMAGE_CONSTANT, f"has the value {low:g} everywhere{where}; check whether the export failed")


def _report_not_finite(reading: Reading, array: Array) -> None:
    nans, infinities = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    if nans:
        message = f"has {nans} NaN voxels; nnU-Net's reader would turn them into 0, replace them by a sensible value"
        reading.fault(Code.VALUE_NAN, message)
    if infinities:
        reading.fault(Code.VALUE_INF, f"has {infinities} infinite voxels; replace them by a sensible value")


def _label_values(reading: Reading, array: Array) -> tuple[int, ...]:
    flat = array.ravel(order="K")
    reading.beat()
    if flat.dtype.kind == "b" or flat.dtype == np.uint8:
        return tuple(int(value) for value in np.flatnonzero(np.bincount(flat, minlength=2)))
    low, high = flat.min(), flat.max()
    if flat.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            reading.fault(Code.VALUE_NAN, "has NaN or infinite voxels; labels must be integers")
            return ()
        broken = flat[flat != np.rint(flat)]
        if broken.size:
            few = np.unique(broken[:_COUNTED])
            shown = ", ".join(f"{value:g}" for value in few[:5])
            reading.fault(Code.LABEL_NOT_INTEGER, f"has values that are not integers ({shown}{', ...' if few.size > 5 else ''})")
            return ()
    if low >= 0 and high < _COUNTED:
        return tuple(int(value) for value in np.flatnonzero(np.bincount(flat.astype(np.uint16, copy=False))))
    return tuple(int(value) for value in np.unique(flat))
