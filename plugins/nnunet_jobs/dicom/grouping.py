"""Groups headers into series, reports copies and foreign files, compares patients, and reports every file that belongs to no series."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nnunet_jobs.dicom.geometry import place
from nnunet_jobs.dicom.header import LABEL_MODALITIES, RTSTRUCT_CLASS, SEG_CLASSES, UNREAD_LABEL_CLASSES
from nnunet_jobs.dicom.mark import named_like
from nnunet_jobs.dicom.model import Instance, Scan, Series, same_patient
from nnunet_jobs.dicom.reading import uid_name
from nnunet_jobs.faults.codes import Code

Headers = list[tuple[int, Path, dict[str, Any]]]
_DICOMDIR = "1.2.840.10008.1.3.10"
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
_MODALITY = {**dict.fromkeys(SEG_CLASSES, "SEG"), RTSTRUCT_CLASS: "RTSTRUCT"}
_NEEDED = {"sop_uid": "SOPInstanceUID", "study_uid": "StudyInstanceUID", "series_uid": "SeriesInstanceUID", "sop_class": "SOPClassUID"}


def group(found: Scan, headers: Headers) -> None:
    """Fill ``found.series`` from the headers of all files, and report files that belong to no series."""
    images = {(header["study_uid"], header["series_uid"]) for _, _, header in headers if header["image"] and not _labels(header)}
    usable: Headers = []
    by_uid: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, path, header in headers:
        kind, study = header["sop_class"], header["study_uid"]
        if kind == _DICOMDIR or (kind and header["image"] is None and not _labels(header) and not _should_be_image(header, images)):
            found.ignored += 1
            continue
        missing = [keyword for key, keyword in _NEEDED.items() if not header[key]]
        if missing:
            message = f"has no {' and no '.join(missing)}, so its series is not known; export it again or move it away"
            found.fault(Code.DICOM_UNREADABLE, number, path, message, study=study)
            continue
        if header["image"] is None and kind != RTSTRUCT_CLASS and kind not in UNREAD_LABEL_CLASSES:
            message = "has no Rows or no Columns, so its pixels cannot be read; export it again or move it away"
            found.fault(Code.DICOM_UNREADABLE, number, path, message, study=study)
            continue
        first, other = by_uid.setdefault(header["sop_uid"], (number, header))
        if first == number:
            usable.append((number, path, header))
        elif other["sha256"] == header["sha256"]:
            message = f"is a copy of file {first} and is left out"
            found.fault(Code.DICOM_DUPLICATE, number, path, message, severity="warning", study=study)
        else:
            message = f"has the SOPInstanceUID of file {first} but different content; keep the right one"
            found.fault(Code.DICOM_DUPLICATE, number, path, message, study=study)
    patients = _patients(usable)
    groups: dict[tuple[str, str, bool], Headers] = defaultdict(list)
    for number, path, header in usable:
        study = header["study_uid"]
        patient, first = patients[study]
        if same_patient(patient_of(header), patient):
            groups[study, header["series_uid"], _labels(header)].append((number, path, header))
        else:
            message = f"has the StudyInstanceUID of file {first} but another PatientID; correct the one that is wrong"
            found.fault(Code.DICOM_PATIENT, number, path, message, study=study)
    found.series = [_series(items, patients[study][0], labels=labels) for (study, _, labels), items in sorted(groups.items())]


def name_strangers(found: Scan, others: Iterable[tuple[int, Path, str]], headers: Headers) -> None:
    """Report files that should be DICOM, by their names or other files of the folder, and are not; count the rest.

    Args:
        others: Number, path and kind of the files that do not begin as DICOM does.
        headers: Headers of the files that do.
    """
    shapes = {(path.parent, _shape(path.name)) for _, path, _ in headers}
    for number, path, kind in others:
        numbered = any(map(str.isdigit, path.name)) and (path.parent, _shape(path.name)) in shapes
        expected = numbered or (named_like(path.name) and path.name.upper() != "DICOMDIR")
        if kind == "damaged":
            message = "holds DICOM after a damaged mark (not DICM), so it is not read; export it again"
            found.fault(Code.DICOM_UNREADABLE, number, path, message)
        elif expected:
            what = "is empty" if kind == "empty" else "does not begin like one"
            message = f"is named like a DICOM file but {what}; copy it again, unpack it if it is compressed, or move it away"
            found.fault(Code.DICOM_UNREADABLE, number, path, message)
        elif headers and path.name.lower().endswith(_ARCHIVES):
            message = "is an archive, which is not opened inside a folder; unpack it if its studies are needed"
            found.fault(Code.FILE_UNUSED, number, path, message, severity="warning")
        else:
            found.other += 1


def assign_by_folder(found: Scan, headers: Headers) -> None:
    """Assign a fault of a file without a study to the study of its folder's other files, if there is exactly one."""
    studies: dict[Path, set[str]] = defaultdict(set)
    for _, path, header in headers:
        if header["study_uid"]:
            studies[path.parent].add(header["study_uid"])
    for number, path in found.files.items():
        here = studies.get(path.parent, set())
        if len(here) == 1:
            found.studies.setdefault(f"file {number}", next(iter(here)))


def _shape(name: str) -> str:
    """Replace every run of digits in a name, so that numbered files of one kind are equal."""
    return re.sub(r"\d+", "0", name.casefold())


def _labels(header: dict[str, Any]) -> bool:
    kind = header["sop_class"]
    return kind in _MODALITY or kind in UNREAD_LABEL_CLASSES or header["modality"] in LABEL_MODALITIES


def _should_be_image(header: dict[str, Any], images: set[tuple[str, str]]) -> bool:
    """Whether an object without a matrix is an image by its class, or of an unknown class and in a series of images."""
    name = uid_name(header["sop_class"])
    unknown = name == header["sop_class"]
    return "Image Storage" in name or (unknown and (header["study_uid"], header["series_uid"]) in images)


def _patients(headers: Headers) -> dict[str, tuple[str, int]]:
    """Return for each study the patient that most of its files name, with the number of the first of these files."""
    files: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for number, _, header in headers:
        files[header["study_uid"]].append((number, header))
    patients = {}
    for study, items in files.items():
        name = _usual(header["patient"] for _, header in items)
        issuer = _usual(header["issuer"] for _, header in items if header["patient"] in (name, ""))
        patient = patient_of({"patient": name, "issuer": issuer})
        patients[study] = patient, next((number for number, header in items if header["patient"] == name), items[0][0])
    return patients


def _usual(values: Iterable[str]) -> str:
    """Return the most frequent string, of equally frequent ones the first; empty only if all are."""
    counts = Counter(value for value in values if value)
    return counts.most_common(1)[0][0] if counts else ""


def _series(items: Headers, patient: str, *, labels: bool) -> Series:
    items.sort(key=lambda item: (place(item[2]["image"]), item[2]["sop_uid"]))
    headers = [header for _, _, header in items]
    kinds = {header["sop_class"] for header in headers}
    return Series(
        patient=patient,
        study_uid=headers[0]["study_uid"],
        series_uid=headers[0]["series_uid"],
        frame_of_reference_uid=_usual(header["frame_of_reference_uid"] for header in headers),
        modality=_MODALITY.get(next(iter(kinds)), "") or _usual(header["modality"] for header in headers),
        description=_usual(header["description"] for header in headers),
        protocol=_usual(header["protocol"] for header in headers),
        instances=tuple(
            Instance(
                path=path,
                sop_class=header["sop_class"],
                sop_uid=header["sop_uid"],
                sha256=header["sha256"],
                number=number,
                image={} if labels or not header["image"] else header["image"],
            )
            for number, path, header in items
        ),
        labels=labels,
        refers_to=_all(headers, "refers_to"),
        refers_to_images=_all(headers, "refers_to_images"),
        refers_to_frames=_all(headers, "refers_to_frames"),
        tags=_tags(headers),
    )


def _all(headers: Sequence[dict[str, Any]], key: str) -> tuple[str, ...]:
    return tuple(sorted({uid for header in headers for uid in header[key] if uid}))


def patient_of(header: dict[str, Any]) -> str:
    """Return PatientID, followed by its issuer if the file names one; empty when the file names no patient."""
    return f"{header['patient']}^^^{header['issuer']}" if header["patient"] and header["issuer"] else str(header["patient"])


def _tags(headers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return values by keyword: one string if all instances agree, else the tuple of the different ones."""
    values: dict[str, set[str]] = defaultdict(set)
    for header in headers:
        for keyword, value in header["tags"].items():
            values[keyword].add(value)
    return {keyword: next(iter(found)) if len(found) == 1 else tuple(sorted(found)) for keyword, found in values.items()}
