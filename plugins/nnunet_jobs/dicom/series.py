"""A folder tree of mixed files becomes series: headers read under guard, grouped by study and series, oddities named by number."""

from __future__ import annotations

import concurrent.futures
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dataset.faults import Code
from nnunet_jobs.dicom.header import RTSTRUCT_CLASS, SEG_CLASSES
from nnunet_jobs.dicom.model import Instance, Series
from nnunet_jobs.dicom.worker import dicom_workers
from nnunet_jobs.guard import Broken, Workers

_HEADER_S = 60.0
_HEADER_MIB = 512
_DICOMDIR = "1.2.840.10008.1.3.10"


@dataclass(slots=True, kw_only=True)
class Scan:
    """What a tree holds.

    Attributes:
        series: images, SEG and RTSTRUCT, in the order of study and series UID.
        faults: of files and series; they name a file by its number only, because paths in an archive's export hold names of people.
        studies: ``file N`` of a fault to its StudyInstanceUID, where the file says it.
        files: number to path of the files that faults name, for those who may see it.
        other: files that are not DICOM. ignored: DICOM objects that are neither images nor labels (reports, DICOMDIR, doses).
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


def scan(
    root: Path,
    *,
    beat: Callable[[], None],
    workers: Workers | None = None,
    threads: int = 1,
    keywords: Sequence[str] = (),
    done: Callable[[int, int], None] | None = None,
) -> Scan:
    """Read the headers of every DICOM file below a folder and group them.

    Hidden files and folders are left out. Links are followed to files inside the tree; those that leave it are faults. Files are
    numbered from 1: a folder's files by name, then what is in its folders.

    Args:
        root: resolved folder. beat: sign of life; may raise to stop. workers: to read with, own ones when None.
        threads: files at once. keywords: DICOM keywords wanted in ``Series.tags``. done: called with files read and files in all.
    """
    if workers is None:
        with dicom_workers(threads) as own:
            return scan(root, beat=beat, workers=own, threads=threads, keywords=keywords, done=done)
    found = Scan()
    files = list(enumerate(walk(root, found, beat), 1))
    guard = workers

    def read(item: tuple[int, Path]) -> dict[str, Any] | str:
        data = {"path": os.path.realpath(item[1]), "keywords": list(keywords)}
        try:
            return guard.call("header", data, timeout_s=_HEADER_S, memory_mib=_HEADER_MIB, beat=beat)
        except Broken as broken:
            return str(broken)

    headers: list[tuple[int, Path, dict[str, Any]]] = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        futures = [pool.submit(read, item) for item in files]
        try:
            for (number, path), future in zip(files, futures, strict=True):
                header = future.result()
                if done is not None:
                    done(number, len(files))
                if isinstance(header, str):
                    found.fault(Code.DICOM_UNREADABLE, number, path, f"cannot be read as DICOM: {header}; export it again or move it away")
                elif header["dicom"]:
                    headers.append((number, path, header))
                else:
                    found.other += 1
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    _group(found, headers)
    return found


def walk(root: Path, found: Scan, beat: Callable[[], None]) -> Iterator[Path]:
    """Regular files, sorted; numbering counts what is yielded, so faults of links carry the number of the next file."""
    number = 0
    folders = [root]
    while folders:
        folder = folders.pop()
        beat()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            found.fault(Code.DICOM_UNREADABLE, number + 1, folder, f"the folder before it cannot be listed: {error.strerror}")
            continue
        below: list[Path] = []
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                target = Path(os.path.realpath(path))
                if not target.is_relative_to(root):
                    message = "the link before it leaves the source; copy what it points to into the source"
                    found.fault(Code.PATH_OUTSIDE, number + 1, path, message)
                    continue
                if target.is_dir():
                    continue  # the walk comes there anyway
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif _is_regular(path):
                number += 1
                yield path
        folders += reversed(below)


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:  # a broken link, or gone meanwhile
        return False


def _group(found: Scan, headers: Sequence[tuple[int, Path, dict[str, Any]]]) -> None:
    by_uid: dict[str, tuple[int, dict[str, Any]]] = {}
    patients: dict[str, tuple[int, str]] = {}
    groups: dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]] = defaultdict(list)
    for number, path, header in headers:
        kind = header["sop_class"]
        if kind and (kind == _DICOMDIR or (header["image"] is None and kind != RTSTRUCT_CLASS)):
            found.ignored += 1
            continue
        missing = [name for name in ("sop_uid", "study_uid", "series_uid", "sop_class") if not header[name]]
        if missing:
            message = f"has no {' and no '.join(missing)}, so nobody knows where it belongs; export it again or move it away"
            found.fault(Code.DICOM_UNREADABLE, number, path, message)
            continue
        study = header["study_uid"]
        first, other = by_uid.setdefault(header["sop_uid"], (number, header))
        if first != number:
            if other["sha256"] == header["sha256"]:
                found.fault(
                    Code.DICOM_DUPLICATE, number, path, f"is file {first} once more and is left out", severity="warning", study=study
                )
            else:
                message = f"has the SOPInstanceUID of file {first} but another content; keep the right one"
                found.fault(Code.DICOM_DUPLICATE, number, path, message, study=study)
            continue
        first, patient = patients.setdefault(study, (number, patient_of(header)))
        if patient != patient_of(header):
            message = f"has the StudyInstanceUID of file {first} but another PatientID; correct the one that is wrong"
            found.fault(Code.DICOM_PATIENT, number, path, message, study=study)
            continue
        groups[study, header["series_uid"]].append((path, header))
    found.series = [_series(items) for _, items in sorted(groups.items())]


def _series(items: list[tuple[Path, dict[str, Any]]]) -> Series:
    from nnunet_jobs.dicom.geometry import place

    items.sort(key=lambda item: (place(item[1]["image"]), item[1]["sop_uid"]))
    headers = [header for _, header in items]
    first = headers[0]
    return Series(
        patient=patient_of(first),
        study_uid=first["study_uid"],
        series_uid=first["series_uid"],
        frame_of_reference_uid=first["frame_of_reference_uid"],
        modality=first["modality"],
        description=first["description"],
        protocol=first["protocol"],
        instances=tuple(
            Instance(
                path=path,
                sop_class=header["sop_class"],
                sop_uid=header["sop_uid"],
                sha256=header["sha256"],
                image=header["image"] if header["image"] and header["sop_class"] not in SEG_CLASSES else {},
            )
            for path, header in items
        ),
        refers_to=tuple(sorted({uid for header in headers for uid in header["refers_to"] if uid})),
        tags=_tags(headers),
    )


def patient_of(header: dict[str, Any]) -> str:
    """PatientID, followed by its issuer where the file names one; empty when the file names nobody."""
    return f"{header['patient']}^^^{header['issuer']}" if header["patient"] and header["issuer"] else str(header["patient"])


def _tags(headers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Values by keyword: one text where all instances agree, else the tuple of the different ones."""
    values: dict[str, set[str]] = defaultdict(set)
    for header in headers:
        for keyword, value in header["tags"].items():
            values[keyword].add(value)
    return {keyword: next(iter(found)) if len(found) == 1 else tuple(sorted(found)) for keyword, found in values.items()}
