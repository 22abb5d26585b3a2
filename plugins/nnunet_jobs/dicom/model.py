"""Defines what the modules of this package share: a series with its ordered instances, and their voxel grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.faults.codes import Code

_SHOWN = 5  # numbers of files in one fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One DICOM file. ``sop_uid`` is its SOPInstanceUID, ``sha256`` the hash of the whole file, ``number`` its number in faults.

    ``image`` is what :mod:`nnunet_jobs.dicom.header` read of an image's matrix, pixels and planes, so that the header is read once;
    it is empty for other objects, and for instances made by hand, whose header :func:`nnunet_jobs.dicom.geometry.grid_of` reads.
    """

    path: Path
    sop_class: str
    sop_uid: str
    sha256: str
    number: int = 0
    image: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series as found on disk.

    Attributes:
        patient: PatientID with its issuer. It identifies a person, so only :mod:`nnunet_jobs.dicom.identity` may store
            it.
        study_uid: StudyInstanceUID; objects that refer to each other are found by it.
        series_uid: SeriesInstanceUID, for the same purpose.
        frame_of_reference_uid: FrameOfReferenceUID, for the same purpose.
        modality: Modality, such as ``MR`` or ``CT``; for label objects ``SEG`` or ``RTSTRUCT``, by their class.
        description: Series description as the scanner wrote it, for series rules; never logged.
        protocol: Protocol name as the scanner wrote it, for series rules; never logged.
        instances: An image series' files, sorted along the slice normal; other objects in the order of their UIDs.
        labels: Whether it holds label objects instead of images.
        refers_to: SeriesInstanceUIDs that label objects describe.
        refers_to_images: SOPInstanceUIDs of the images that the object names.
        refers_to_frames: FrameOfReferenceUIDs that the object names.
        tags: Further values for series rules, by DICOM keyword.
    """

    patient: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    description: str = ""
    protocol: str = ""
    instances: tuple[Instance, ...]
    labels: bool = False
    refers_to: tuple[str, ...] = ()
    refers_to_images: tuple[str, ...] = ()
    refers_to_frames: tuple[str, ...] = ()
    tags: dict[str, Any] = field(default_factory=dict)


def same_patient(first: str, other: str) -> bool:
    """Whether two values of :attr:`Series.patient` may be of one person.

    Parts that one of them lacks are ignored: many programs write no PatientID or IssuerOfPatientID into derived objects.
    """
    (name, _, issuer), (other_name, _, other_issuer) = first.partition("^^^"), other.partition("^^^")
    same = not name or not other_name or name == other_name
    return same and (not issuer or not other_issuer or issuer == other_issuer)


def files_named(numbers: Iterable[int]) -> str:
    """Name files by number, such as ``file 4`` or ``files 4, 5, 9 and 12 more``; empty if none has a number."""
    known = sorted(set(numbers) - {0})
    shown = ", ".join(map(str, known[:_SHOWN])) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
    return f"file{'s' if len(known) > 1 else ''} {shown}" if known else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A regular voxel grid in DICOM's patient coordinates (LPS, mm).

    Attributes:
        shape: (columns, rows, slices), that is the axes i, j, k of ``affine``.
        affine: 4 x 4; maps the centre of voxel (i, j, k, 1) to (x, y, z, 1) in LPS mm. NIfTI's affine has the first
            two rows negated.
        sop_uids: SOPInstanceUID of each slice k of a single-frame series, or the UID of a multi-frame object.
        frames: Frame number (from 1) of each slice k of a multi-frame object; empty for single-frame series.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    sop_uids: tuple[str, ...]
    frames: tuple[int, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Return the voxel size along i, j, k in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)


@dataclass(slots=True, kw_only=True)
class Scan:
    """The content of a tree of files.

    Attributes:
        series: Images, SEG and RTSTRUCT, in the order of study and series UID.
        faults: Faults of files and series; they name a file by its number only, because paths in an archive's export
            hold names of people.
        studies: Maps ``file N`` of a fault to its StudyInstanceUID, if the file or others of its folder name it.
        files: Maps number to path for the files that faults name, for users who may see paths.
        other: Files that are not DICOM.
        ignored: DICOM objects that are neither images nor labels (reports, DICOMDIR, doses).
    """

    series: list[Series] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    studies: dict[str, str] = field(default_factory=dict)
    files: dict[int, Path] = field(default_factory=dict)
    other: int = 0
    ignored: int = 0

    def fault(self, code: Code, number: int, path: Path, message: str, *, severity: str = "error", study: str = "") -> None:
        """Add a fault of the file with this number."""
        self.files[number] = path
        if study:
            self.studies[f"file {number}"] = study
        self.faults.append(Fault(code=code, file=f"file {number}", message=message, severity=severity))
