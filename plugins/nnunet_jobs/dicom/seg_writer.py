"""Writes a segmentation as a DICOM SEG that archives and viewers assign to its source series."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import ConfigError, DataError, Fault
from nnunet_jobs.contract.steps.segment_codes import SegmentCodes
from nnunet_jobs.contract.storage.files import PRIVATE, content_hash, replacing
from nnunet_jobs.dicom.model import Grid, Series
from nnunet_jobs.dicom.seg_sources import source_headers
from nnunet_jobs.dicom.segments import quiet_libraries
from nnunet_jobs.faults.codes import Code

log = logging.getLogger("nnunet_jobs")

ENDING = ".seg.dcm"
_PROVIDER = "airflow-provider-nnunet"
_LO = 64  # characters of the value representation LO
# Patient and study attributes of the source, copied unchanged, since the archive sorts the object by them.
_COPIED = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_CHECKED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
            "ReferringPhysicianName")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSegment:
    """One segment to write: its name, its label values (several for a region), and its codes."""

    name: str
    values: tuple[int, ...]
    codes: SegmentCodes = field(default_factory=SegmentCodes)


def output_segments(labels: Mapping[str, tuple[int, ...]], codes: Mapping[str, SegmentCodes]) -> list[OutputSegment]:
    """Return the segments of foreground labels, by value.

    Raises:
        ConfigError: ``codes`` names a label that the model does not have.
    """
    unknown = sorted(set(codes) - set(labels))
    if unknown:
        raise ConfigError(
            field="segment_codes", problem=f"{unknown[0]!r} is not a label of the model", fix=f"its labels are {', '.join(labels)}"
        )
    segments = [OutputSegment(name=name, values=values, codes=codes.get(name, SegmentCodes())) for name, values in labels.items()]
    return sorted(segments, key=lambda segment: segment.values)


def write_seg(
    segmentation: npt.NDArray[Any],
    grid: Grid,
    reference: Series,
    *,
    segments: Sequence[OutputSegment],
    model: str,
    model_hash: str,
    target: Path,
    kind: str = "BINARY",
) -> str:
    """Write a segmentation as a SEG, completely or not at all; its mode is 0600, since it names the patient.

    UIDs are derived from source series, model and content: the same input gives the same SOPInstanceUID, so storing it again adds nothing.

    Args:
        segmentation: Label values in the grid's (i, j, k) order.
        grid: Voxel grid of the source series.
        reference: The source series.
        segments: Segments to write.
        model: Model id, named in the content description and the algorithm identification.
        model_hash: Hash of the model, named there as well.
        target: File to write, named by the case.
        kind: ``BINARY`` or ``LABELMAP``.

    Returns:
        The SOPInstanceUID.

    Raises:
        DataError: The source's position differs from the grid, or it lacks what a SEG needs.
        ConfigError: Segments overlap in a LABELMAP.
    """
    if segmentation.shape != grid.shape:
        sizes = (" x ".join(map(str, shape)) for shape in (segmentation.shape, grid.shape))
        raise DataError("segmentation has the shape {}, its grid {}".format(*sizes))
    quiet_libraries()
    sources = source_headers(reference, grid)
    frames = _in_source_order(_planes(segmentation, segments, kind), sources, grid)
    series_uid = _uid("series", reference.series_uid, model_hash)
    described = [[item.name, list(item.values), repr(item.codes)] for item in segments]
    content = sha256(np.ascontiguousarray(segmentation).astype("<u4").tobytes()).hexdigest()
    sop_uid = _uid("instance", series_uid, kind, content_hash(described, length=64), content, list(grid.sop_uids))
    seg = _build(frames, sources, segments, kind=kind, model=model, model_hash=model_hash, series_uid=series_uid, sop_uid=sop_uid)
    with replacing(target, mode=PRIVATE) as file:
        seg.save_as(file)
    return sop_uid


def _planes(segmentation: npt.NDArray[Any], segments: Sequence[OutputSegment], kind: str) -> Any:
    """Return pixels as (k, row, column): segment numbers, or masks on one more axis if segments overlap."""
    values = [value for segment in segments for value in segment.values]
    turned = np.ascontiguousarray(segmentation.transpose(2, 1, 0))  # contiguous, since whole frames are read from it many times
    if len(set(values)) == len(values):
        lookup = np.zeros(int(max([*values, int(segmentation.max(initial=0))])) + 1, dtype=np.uint16 if len(segments) > 255 else np.uint8)
        for number, segment in enumerate(segments, start=1):
            lookup[list(segment.values)] = number
        return lookup[turned]
    if kind == "LABELMAP":
        raise ConfigError(field="dicom_seg", problem="regions overlap, which a LABELMAP cannot hold", fix="write BINARY segments")
    return np.stack([np.isin(turned, segment.values) for segment in segments], axis=-1).astype(np.uint8)


def _in_source_order(planes: Any, sources: Sequence[Any], grid: Grid) -> Any:
    """Reorder planes for a multi-frame source, which needs one for each of its frames, in its own order."""
    if not grid.frames:
        return planes
    frames = np.zeros((int(sources[0].NumberOfFrames), *planes.shape[1:]), dtype=planes.dtype)
    frames[np.asarray(grid.frames) - 1] = planes
    return frames


def _build(
    frames: Any,
    sources: Sequence[Any],
    segments: Sequence[OutputSegment],
    *,
    kind: str,
    model: str,
    model_hash: str,
    series_uid: str,
    sop_uid: str,
) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    first = sources[0]
    kept = {keyword: deepcopy(first[keyword]) for keyword in _COPIED if keyword in first}
    for keyword in _CHECKED:  # highdicom refuses odd values and logs them; they are restored below
        setattr(first, keyword, None)
    nnunet = _version("nnunetv2")
    algorithm = hd.AlgorithmIdentificationSequence(
        name="nnU-Net",
        family=codes.DCM.ArtificialIntelligence,
        version=_lo(f"{nnunet} {model}"),
        source=_PROVIDER,
        parameters={"model": model, "hash": model_hash},
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=_lo(segment.name),
            segmented_property_category=_concept(segment.codes.category),
            segmented_property_type=_concept(segment.codes.kind),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, segment in enumerate(segments, start=1)
    ]
    try:
        seg = hd.seg.Segmentation(
            source_images=list(sources),
            pixel_array=frames,
            segmentation_type=kind,
            segment_descriptions=descriptions,
            series_instance_uid=series_uid,
            series_number=_series_number(first),
            sop_instance_uid=sop_uid,
            instance_number=1,
            manufacturer=_PROVIDER,
            manufacturer_model_name="nnU-Net",
            software_versions=(f"nnunetv2 {nnunet}", f"{_PROVIDER} {_version(_PROVIDER)}"),
            device_serial_number=_lo(model_hash),
            content_label="NNUNET",
            content_description=_description(model, model_hash),
            series_description=_lo(f"nnU-Net segmentation, {model}"),
            specific_character_set="ISO_IR 192",
            omit_empty_frames=bool(frames.any()),
        )
    except (AttributeError, TypeError, ValueError) as error:
        # highdicom's message may quote the header, so only its class is logged
        log.debug("no SEG, by %s", type(error).__name__)
        message = "the source images lack what a SEG needs, or hold it malformed; export the original images"
        raise DataError(f"no DICOM SEG: {message}", faults=[Fault(code=Code.UNREADABLE, message=message)]) from None
    for keyword in _CHECKED:
        setattr(seg, keyword, None)
    for keyword, element in kept.items():
        seg[keyword] = element
    _fix_random_uids(seg, sop_uid)
    return seg


def _fix_random_uids(seg: Any, sop_uid: str) -> None:
    """Replace highdicom's random UID of the dimension organisation, so that the same content gives the same object."""
    organisation = _uid("dimensions", sop_uid)
    for item in (*seg.get("DimensionOrganizationSequence", ()), *seg.get("DimensionIndexSequence", ())):
        item.DimensionOrganizationUID = organisation


def _uid(*parts: Any) -> str:
    """Make a UID from a UUID (DICOM PS3.5, B.2) that depends only on the parts."""
    name = content_hash([_PROVIDER, *parts], length=64)
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def _series_number(source: Any) -> int:
    """Return a series number above those of scanners, which end at some hundreds."""
    number = source.get("SeriesNumber")
    return 9000 + (int(number) % 1000 if number is not None else 0)


def _description(model: str, model_hash: str) -> str:
    """Name model and hash within 64 characters: the model's name is cut, the hash keeps at least 16 digits."""
    digits = model_hash[:32] if len(model) + len(model_hash[:32]) + 9 <= _LO else model_hash[:16]
    room = _LO - len(digits) - 9
    return _lo(f"nnU-Net {model[:room]} {digits}")


def _lo(text: str) -> str:
    return text.replace("\\", "/").strip()[:_LO].strip()


def _concept(code: Any) -> Any:
    from pydicom.sr.coding import Code as Coded

    return Coded(code.value, code.scheme, code.meaning)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # used as a plain folder, without pip
        return "unknown"
