"""What one DICOM file says of itself: identity, series rules, references, and an image's matrix, pixels and planes, as plain JSON."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
NUMBERS = ("SeriesNumber", "EchoTime", "RepetitionTime", "SliceThickness")
"""Told of series that no rule tells apart: numbers that people know, and that say nothing of the patient."""

_IDENTITY = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID",
             "SOPInstanceUID", "Modality", "SeriesDescription", "ProtocolName")  # fmt: skip
_IMAGE = ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SamplesPerPixel", "NumberOfFrames",
          "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
          "ImageType", "GantryDetectorTilt", "ModalityLUTSequence", "LossyImageCompression", "SharedFunctionalGroupsSequence",
          "PerFrameFunctionalGroupsSequence")  # fmt: skip
_REFERENCES = ("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence")
_CHUNK = 1 << 20
_LONGEST = 1000  # characters of a value for series rules


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the mark of DICOM files (part 10): ``DICM`` after a preamble of 128 bytes. Never waits on pipes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, 132, 0)[128:] == b"DICM"
    finally:
        os.close(fd)


def task(data: dict[str, Any]) -> dict[str, Any]:
    """:func:`read_header` for the guard."""
    return read_header(data["path"], data["keywords"])


def read_header(path: str, keywords: Sequence[str] = ()) -> dict[str, Any]:
    """Read one file up to its pixels, and its hash to the end.

    Args:
        path: a regular file. keywords: further DICOM keywords wanted for series rules.

    Returns:
        ``{"dicom": False}``, or ``sha256`` and the values, empty texts where the file has none; ``image`` is None for other objects.
        See the code for the keys; lengths in mm, LPS.
    """
    if not is_dicom(path):
        return {"dicom": False}
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        file.seek(0)
        wanted = [Tag(keyword) for keyword in (*_IDENTITY, *_IMAGE, *_REFERENCES, *NUMBERS, *keywords)]
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(wanted))
    text = {keyword: _text(dataset.get(keyword)) for keyword in _IDENTITY}
    syntax = dataset.file_meta.get("TransferSyntaxUID", "")
    return {
        "dicom": True,
        "sha256": digest.hexdigest(),
        "patient": text["PatientID"],
        "issuer": text["IssuerOfPatientID"],
        "study_uid": text["StudyInstanceUID"],
        "series_uid": text["SeriesInstanceUID"],
        "frame_of_reference_uid": text["FrameOfReferenceUID"],
        "sop_class": text["SOPClassUID"] or _text(dataset.file_meta.get("MediaStorageSOPClassUID")),
        "sop_uid": text["SOPInstanceUID"],
        "modality": text["Modality"],
        "description": text["SeriesDescription"],
        "protocol": text["ProtocolName"],
        "refers_to": sorted(set(_referred(dataset))),
        "tags": {keyword: _text(dataset[keyword].value) for keyword in (*NUMBERS, *keywords) if keyword in dataset},
        "image": _image(dataset, str(syntax)) if "Rows" in dataset and "Columns" in dataset else None,
    }


def _text(value: Any) -> str:
    """A value as one text; several values are joined by DICOM's own backslash."""
    if value is None:
        return ""
    if isinstance(value, MultiValue | list | tuple):
        return "\\".join(str(item).strip() for item in value)[:_LONGEST]
    return str(value).strip(" \0")[:_LONGEST]


def _numbers(value: Any, count: int) -> list[float] | None:
    """``count`` finite numbers, or None."""
    try:
        numbers = [float(item) for item in value]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _number(value: Any, default: float) -> float:
    found = _numbers([value], 1) if value not in (None, "") else None
    return found[0] if found else default


def _image(dataset: Dataset, syntax: str) -> dict[str, Any]:
    frames = int(dataset.get("NumberOfFrames") or 1)
    shared, per_frame = dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")
    if shared or per_frame:
        common = shared[0] if shared else Dataset()
        planes = [_frame_plane(item, common) for item in per_frame or [Dataset()] * frames]
    else:
        planes = [_plane(dataset)] * frames
    return {
        "syntax": syntax,
        "rows": int(dataset.Rows),
        "columns": int(dataset.Columns),
        "frames": frames,
        "samples": int(dataset.get("SamplesPerPixel") or 1),
        "photometric": _text(dataset.get("PhotometricInterpretation")),
        "allocated": int(dataset.get("BitsAllocated") or 0),
        "stored": int(dataset.get("BitsStored") or 0),
        "high_bit": int(dataset.get("HighBit", -1)),
        "signed": int(dataset.get("PixelRepresentation") or 0) == 1,
        "image_type": _text(dataset.get("ImageType")),
        "tilt": _number(dataset.get("GantryDetectorTilt"), 0.0),
        "lut": bool(dataset.get("ModalityLUTSequence")),
        "lossy": _text(dataset.get("LossyImageCompression")) == "01",
        "planes": planes,
    }


def _plane(dataset: Dataset) -> dict[str, Any]:
    return {
        "position": _numbers(dataset.get("ImagePositionPatient"), 3),
        "orientation": _numbers(dataset.get("ImageOrientationPatient"), 6),
        "spacing": _numbers(dataset.get("PixelSpacing"), 2),
        "slope": _number(dataset.get("RescaleSlope"), 1.0),
        "intercept": _number(dataset.get("RescaleIntercept"), 0.0),
    }


def _frame_plane(frame: Dataset, shared: Dataset) -> dict[str, Any]:
    """Plane of one frame of a multi-frame object; each functional group is in the frame's own item or in the shared one."""

    def group(sequence: str) -> Dataset:
        for place in (frame, shared):
            found = place.get(sequence)
            if found:
                item: Dataset = found[0]
                return item
        return Dataset()

    measures, values = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    return {
        "position": _numbers(group("PlanePositionSequence").get("ImagePositionPatient"), 3),
        "orientation": _numbers(group("PlaneOrientationSequence").get("ImageOrientationPatient"), 6),
        "spacing": _numbers(measures.get("PixelSpacing"), 2),
        "slope": _number(values.get("RescaleSlope"), 1.0),
        "intercept": _number(values.get("RescaleIntercept"), 0.0),
    }


def _referred(dataset: Dataset) -> Iterator[str]:
    """SeriesInstanceUIDs that a SEG or RTSTRUCT describes."""
    for series in _items(dataset, "ReferencedSeriesSequence"):
        yield _text(series.get("SeriesInstanceUID"))
    for frame in _items(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in _items(frame, "RTReferencedStudySequence"):
            for series in _items(study, "RTReferencedSeriesSequence"):
                yield _text(series.get("SeriesInstanceUID"))


def _items(dataset: Dataset, keyword: str) -> Iterable[Dataset]:
    return dataset.get(keyword) or ()
