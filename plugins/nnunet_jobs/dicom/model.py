"""What the rooms of this package hand to each other: a series with its instances in order, and the voxel grid they span."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One DICOM file. ``sop_uid`` is its SOPInstanceUID; ``sha256`` of the whole file.

    ``image`` is what :mod:`nnunet_jobs.dicom.header` read of an image's matrix, pixels and planes, so that nobody reads the header
    twice; empty for other objects, and for instances made by hand, whose header :func:`nnunet_jobs.dicom.geometry.grid_of` reads.
    """

    path: Path
    sop_class: str
    sop_uid: str
    sha256: str
    image: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series as found on disk.

    Attributes:
        patient: PatientID with its issuer. It identifies a person: it goes into :mod:`nnunet_jobs.dicom.identity` and nowhere else.
        study_uid, series_uid, frame_of_reference_uid: of DICOM; they find objects that refer to each other.
        modality: such as ``MR``, ``CT``, ``SEG``. description, protocol: as the scanner wrote them, for series rules; never logged.
        instances: an image series' files, sorted along the slice normal; other objects in the order of their UIDs.
        refers_to: for SEG and RTSTRUCT the SeriesInstanceUIDs that they describe.
        tags: further values for series rules, by DICOM keyword.
    """

    patient: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    description: str = ""
    protocol: str = ""
    instances: tuple[Instance, ...]
    refers_to: tuple[str, ...] = ()
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A regular voxel grid in DICOM's patient coordinates (LPS, mm).

    Attributes:
        shape: (columns, rows, slices), that is the axes i, j, k of ``affine``.
        affine: 4 x 4; takes the centre of voxel (i, j, k, 1) to (x, y, z, 1) in LPS mm. NIfTI's is this with the first two rows negated.
        sop_uids: for single-frame series the SOPInstanceUID of each slice k; for a multi-frame object the one UID.
        frames: for a multi-frame object the frame number (from 1) of each slice k; empty for single-frame series.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    sop_uids: tuple[str, ...]
    frames: tuple[int, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along i, j, k in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)
