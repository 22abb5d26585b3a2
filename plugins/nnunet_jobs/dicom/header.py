"""Reads one DICOM file's header as plain JSON: identity, series rules, references, and an image's matrix, pixels and planes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from nnunet_jobs.dicom.reading import kind_of, read_file
from nnunet_jobs.dicom.references import References, items, references_of

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
LABEL_CLASSES = (*SEG_CLASSES, RTSTRUCT_CLASS)
LABEL_MODALITIES = ("SEG", "RTSTRUCT")
UNREAD_LABEL_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.5", "1.2.840.10008.5.1.4.1.1.481.11")
"""Surface Segmentation and RT Segment Annotation: they hold labels that nothing here reads, which is reported."""
NUMBERS = ("SeriesNumber", "EchoTime", "RepetitionTime", "SliceThickness")
"""Shown of series that no rule distinguishes: numbers that users know, and that do not identify the patient."""

_IDENTITY = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID",
             "SOPInstanceUID", "Modality", "SeriesDescription", "ProtocolName")  # fmt: skip
_IMAGE = ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SamplesPerPixel", "NumberOfFrames",
          "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
          "RescaleType", "Units", "ImageType", "GantryDetectorTilt", "ModalityLUTSequence", "LossyImageCompression",
          "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")  # fmt: skip
_ENCODING = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation")
_REFERENCES = ("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence", "SourceImageSequence", "StructureSetROISequence")
_UNITS = {"Bq/ml": "BQML", "{counts}": "CNTS", "g/ml{SUVbw}": "GML", "g/ml": "GML", "{counts}/s": "CPS"}  # UCUM to DICOM's own terms
_CHUNK = 1 << 20
_LONGEST = 1000  # characters of a value for series rules


def task(data: dict[str, Any]) -> dict[str, Any]:
    """Run :func:`read_header` in the sandbox."""
    return read_header(data["path"], data["keywords"])


def read_header(path: str, keywords: Sequence[str] = ()) -> dict[str, Any]:
    """Read one file's header up to its pixels, and hash the whole file.

    Args:
        path: A regular file.
        keywords: Further DICOM keywords for series rules.

    Returns:
        ``{"dicom": False}`` with the ``kind`` of the file's first bytes, or ``sha256`` and the values, empty strings where the file has
        none; ``image`` is None for other objects. See the code for the keys; lengths in mm, LPS.
    """
    kind = kind_of(path)
    if kind not in ("marked", "unmarked"):
        return {"dicom": False, "kind": kind}
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        file.seek(0)
        wanted = [Tag(keyword) for keyword in (*_IDENTITY, *_IMAGE, *_REFERENCES, *NUMBERS, *keywords)]
        dataset = read_file(file, stop_before_pixels=True, specific_tags=list(wanted))
    text = {keyword: _text(dataset.get(keyword)) for keyword in _IDENTITY}
    sop_class = text["SOPClassUID"] or _text(dataset.file_meta.get("MediaStorageSOPClassUID"))
    references = _references(path, dataset, sop_class)
    return {
        "dicom": True,
        "sha256": digest.hexdigest(),
        "patient": text["PatientID"],
        "issuer": text["IssuerOfPatientID"],
        "study_uid": text["StudyInstanceUID"],
        "series_uid": text["SeriesInstanceUID"],
        "frame_of_reference_uid": text["FrameOfReferenceUID"],
        "sop_class": sop_class,
        "sop_uid": text["SOPInstanceUID"],
        "modality": text["Modality"],
        "description": text["SeriesDescription"],
        "protocol": text["ProtocolName"],
        "refers_to": sorted(references.series),
        "refers_to_images": sorted(references.images),
        "refers_to_frames": sorted(references.frames),
        "tags": {keyword: _text(dataset[keyword].value) for keyword in (*NUMBERS, *keywords) if keyword in dataset},
        "image": _image(dataset) if dataset.get("Rows") and dataset.get("Columns") else None,
    }


def _references(path: str, dataset: Dataset, sop_class: str) -> References:
    """Return what a label object describes. Contours, which are most of a file, are read only if nothing else names images."""
    if sop_class not in (*LABEL_CLASSES, *UNREAD_LABEL_CLASSES) and _text(dataset.get("Modality")) not in LABEL_MODALITIES:
        return References()
    found = references_of(dataset)
    if sop_class == RTSTRUCT_CLASS and not found.images:
        contours = references_of(read_file(path, specific_tags=[Tag("ROIContourSequence")]))
        return References(series=found.series, images=contours.images, frames=found.frames)
    return found


def _text(value: Any) -> str:
    """Return a value as one string; several values are joined by DICOM's backslash."""
    if value is None:
        return ""
    if isinstance(value, MultiValue | list | tuple):
        return "\\".join(str(item).strip() for item in value)[:_LONGEST]
    return str(value).strip(" \0")[:_LONGEST]


def _numbers(value: Any, count: int) -> list[float] | None:
    """Return ``count`` finite numbers, or None."""
    try:
        numbers = [float(item) for item in value]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _number(value: Any, default: float) -> float:
    found = _numbers([value], 1) if value not in (None, "") else None
    return found[0] if found else default


def _rescale(dataset: Dataset, keyword: str) -> float | None:
    """Return RescaleSlope or RescaleIntercept: None if it is missing, NaN if it is not a number."""
    value = dataset.get(keyword)
    if value in (None, ""):
        return None
    found = _numbers([value], 1)
    return found[0] if found else math.nan


def _image(dataset: Dataset) -> dict[str, Any]:
    frames = int(dataset.get("NumberOfFrames") or 1)
    shared, per_frame = dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")
    if shared or per_frame:
        common = shared[0] if shared else Dataset()
        planes = [_frame_plane(item, common, dataset) for item in per_frame or [Dataset()] * frames]
    else:
        planes = [_plane(dataset)] * frames
    return {
        "modality": _text(dataset.get("Modality")),
        "syntax": str(dataset.file_meta.TransferSyntaxUID),
        "frame_of_reference": _text(dataset.get("FrameOfReferenceUID")),
        "missing": [keyword for keyword in _ENCODING if dataset.get(keyword) in (None, "")],
        "rows": int(dataset.Rows),
        "columns": int(dataset.Columns),
        "frames": frames,
        "samples": int(dataset.get("SamplesPerPixel") or 1),
        "photometric": _text(dataset.get("PhotometricInterpretation")),
        "allocated": int(dataset.get("BitsAllocated") or 0),
        "stored": int(dataset.get("BitsStored") or 0),
        "high_bit": int(value) if (value := dataset.get("HighBit")) is not None else -1,
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
        "thickness": _number(dataset.get("SliceThickness"), 0.0),
        **_values(dataset),
        "units": _text(dataset.get("Units")),
    }


def _values(dataset: Dataset) -> dict[str, Any]:
    return {
        "slope": _rescale(dataset, "RescaleSlope"),
        "intercept": _rescale(dataset, "RescaleIntercept"),
        "type": _text(dataset.get("RescaleType")),
    }


def _frame_plane(frame: Dataset, shared: Dataset, whole: Dataset) -> dict[str, Any]:
    """Return the plane of one frame of a multi-frame object; each functional group is in the frame's own item or in the shared one.

    Some writers put the meaning of values at the top of the object, where single-frame images have it.
    """

    def group(sequence: str) -> Dataset:
        for place in (frame, shared):
            found = place.get(sequence)
            if found:
                item: Dataset = found[0]
                return item
        return Dataset()

    measures = group("PixelMeasuresSequence")
    return {
        "position": _numbers(group("PlanePositionSequence").get("ImagePositionPatient"), 3),
        "orientation": _numbers(group("PlaneOrientationSequence").get("ImageOrientationPatient"), 6),
        "spacing": _numbers(measures.get("PixelSpacing"), 2),
        "thickness": _number(measures.get("SliceThickness"), 0.0),
        **_values(group("PixelValueTransformationSequence") or whole),
        "units": _frame_units(group) or _text(whole.get("Units")),
    }


def _frame_units(group: Callable[[str], Dataset]) -> str:
    """Return the unit of a frame's values in DICOM's terms for PET, such as ``BQML``, from a real world mapping or a converted PET."""
    for keyword in ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence"):
        if found := _text(group(keyword).get("Units")):
            return found
    for code in items(group("RealWorldValueMappingSequence"), "MeasurementUnitsCodeSequence"):
        value = _text(code.get("CodeValue"))
        return _UNITS.get(value, value)
    return ""
