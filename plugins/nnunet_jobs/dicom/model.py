"""What the rooms of this package hand to each other: a series with its instances in order, and the voxel grid they span."""

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
    """One DICOM file. ``sop_uid`` is its SOPInstanceUID; ``sha256`` of the whole file; ``number`` the one that faults call it by.

    ``image`` is what :mod:`nnunet_jobs.dicom.header` read of an image's matrix, pixels and planes, so that nobody reads the header
    twice; empty for other objects, and for instances made by hand, whose header :func:`nnunet_jobs.dicom.geometry.grid_of` reads.
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
        patient: PatientID with its issuer. It identifies a person: it goes into :mod:`nnunet_jobs.dicom.identity` and
            nowhere else.
        study_uid: StudyInstanceUID; objects that refer to each other are found by it.
        series_uid: SeriesInstanceUID, for the same purpose.
        frame_of_reference_uid: FrameOfReferenceUID, for the same purpose.
        modality: Modality, such as ``MR`` or ``CT``; for label objects ``SEG`` or ``RTSTRUCT``, by what they are.
        description: Series description as the scanner wrote it, for series rules; never logged.
        protocol: Protocol name as the scanner wrote it, for series rules; never logged.
        instances: An image series' files, sorted along the slice normal; other objects in the order of their UIDs.
        labels: Whether it holds label objects, and no images.
        refers_to: For label objects the SeriesInstanceUIDs that they describe.
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
    """Whether two identities of :attr:`Series.patient` may be of one person.

    What is missing in one of them is no difference: many programs write no PatientID or IssuerOfPatientID into what they derive.
    """
    (name, _, issuer), (other_name, _, other_issuer) = first.partition("^^^"), other.partition("^^^")
    same = not name or not other_name or name == other_name
    return same and (not issuer or not other_issuer or issuer == other_issuer)


def files_named(numbers: Iterable[int]) -> str:
    """Numbers of files as faults name them, such as ``file 4`` or ``files 4, 5, 9 and 12 more``; empty where none has a number."""
    known = sorted(set(numbers) - {0})
    shown = ", ".join(map(str, known[:_SHOWN])) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
    return f"file{'s' if len(known) > 1 else ''} {shown}" if known else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A regular voxel grid in DICOM's patient coordinates (LPS, mm).

    Attributes:
        shape: (columns, rows, slices), that is the axes i, j, k of ``affine``.
        affine: 4 x 4; takes the centre of voxel (i, j, k, 1) to (x, y, z, 1) in LPS mm. NIfTI's is this with the first
            two rows negated.
        sop_uids: For single-frame series the SOPInstanceUID of each slice k; for a multi-frame object the one UID.
        frames: For a multi-frame object the frame number (from 1) of each slice k; empty for single-frame series.
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


@dataclass(slots=True, kw_only=True)
class Scan:
    """What a tree holds.

    Attributes:
        series: Images, SEG and RTSTRUCT, in the order of study and series UID.
        faults: Faults of files and series; they name a file by its number only, because paths in an archive's export
            hold names of people.
        studies: ``file N`` of a fault to its StudyInstanceUID, where the file or its neighbours say it.
        files: Number to path of the files that faults name, for those who may see it.
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


def size_of(path: Path) -> int:
    """Bytes of a file; 0 when it is gone since it was found, which whoever reads it will say without naming it."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
