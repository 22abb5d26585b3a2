"""Stores result files in the archive: in batches, each file once. Failures are reported after all files were tried."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_nnunet.dicomweb.archive import Archive
from airflow_nnunet.dicomweb.transport import pydicom
from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.storage.files import locked, read_json, sha256_file, write_record
from nnunet_jobs.contract.storage.predictions import is_of_an_earlier_model

log = logging.getLogger(__name__)
STORED = ".stored"
# A request keeps two or three copies of a batch in memory.
_BATCH_FILES = 16
_BATCH_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """Reports how storing a folder's files ended.

    Attributes:
        stored: Number of files sent now and confirmed.
        already_stored: Number of files sent by an earlier try and unchanged since.
        faults: One for each file that the archive does not have.
        may_pass: Whether another try may succeed for one of them.
    """

    stored: int
    already_stored: int
    faults: tuple[Fault, ...] = ()
    may_pass: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    name: str
    path: Path
    sha256: str


def find_files(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder and its sub-folders, without hidden ones (records, scratch, incomplete files).

    In an output folder of predictions, files that earlier models predicted are left out.
    """
    found = sorted(
        path
        for path in folder.rglob("*.dcm")
        if path.is_file() and not path.is_symlink() and not is_of_an_earlier_model(path, below=folder)
    )
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def store_files(archive: Archive, paths: Sequence[Path], *, folder: Path, modalities: Sequence[str] = ("SEG",)) -> StoreReport:
    """Store files and record in ``folder`` what this archive has confirmed, so that the next try sends only the rest.

    Args:
        paths: Files in ``folder``.
        modalities: Modalities that may be sent. A file of another one is a fault, so that no source image is sent back.

    Raises:
        ArchiveUnavailable: The archive does not answer; what was confirmed before stays recorded.
        ArchiveRefused: The archive refuses all requests; what was confirmed before stays recorded.
    """
    notes = folder / STORED
    notes.mkdir(parents=True, exist_ok=True)
    record = notes / f"{archive.endpoint.key}.json"
    with locked(record.with_suffix(".lock")):
        confirmed = _confirmed(record)
        files = [_File(name=path.relative_to(folder).as_posix(), path=path, sha256=sha256_file(path)) for path in paths]
        pending = [file for file in files if confirmed.get(file.name) != file.sha256]
        faults: list[Fault] = []
        names: dict[str, _File] = {}
        stored, may_pass = 0, False
        for batch in _batches(pending):
            datasets = {}
            for file in batch:
                dataset = _read(file.path)
                fault = _refused(file, dataset, modalities, names)
                if fault:
                    faults.append(fault)
                    continue
                uid = str(dataset.SOPInstanceUID)
                datasets[uid], names[uid] = dataset, file
            if not datasets:
                continue
            answer = archive.store(datasets)
            for uid, (reason, passing) in sorted(answer.failed.items()):
                faults.append(Fault(code="not_stored", message=reason, file=names[uid].name))
                may_pass = may_pass or passing
            confirmed.update({names[uid].name: names[uid].sha256 for uid in answer.stored})
            stored += len(answer.stored)
            write_record(record, {"files": confirmed})
            log.info("%s of %s files stored", stored, len(pending))
    return StoreReport(stored=stored, already_stored=len(files) - len(pending), faults=tuple(faults), may_pass=may_pass)


def _confirmed(record: Path) -> dict[str, str]:
    """Return the sha256 by name of the files that the archive has confirmed. Version 0.1 wrote no schema around them."""
    data: dict[str, Any] = read_json(record) if record.is_file() else {}
    return dict(data["files"] if "schema" in data else data)


def _batches(files: Sequence[_File]) -> Iterator[list[_File]]:
    batch: list[_File] = []
    size = 0
    for file in files:
        bytes_ = file.path.stat().st_size
        if batch and (len(batch) >= _BATCH_FILES or size + bytes_ > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += bytes_
    if batch:
        yield batch


def _read(path: Path) -> Any:
    """Return the dataset, or None if it is not DICOM. The parser's message is dropped, as it may quote the file."""
    module = pydicom()
    try:
        return module.dcmread(path)
    except (module.errors.InvalidDicomError, ValueError, LookupError, EOFError, AttributeError, TypeError):
        return None


def _refused(file: _File, dataset: Any, modalities: Sequence[str], names: dict[str, _File]) -> Fault | None:
    if dataset is None or not dataset.get("SOPInstanceUID") or not dataset.get("StudyInstanceUID"):
        return Fault(code="unreadable", message="is not a DICOM file with a SOPInstanceUID and a StudyInstanceUID", file=file.name)
    modality = str(dataset.get("Modality", ""))
    if modality not in modalities:
        message = (
            f"is of modality {modality or 'none'}; only {', '.join(modalities)} is stored back; add it to modalities if you want it stored"
        )
        return Fault(code="wrong_modality", message=message, file=file.name)
    other = names.get(str(dataset.SOPInstanceUID))
    if other is not None:
        return Fault(code="duplicate_uid", message=f"has the SOPInstanceUID of {other.name}", file=file.name)
    return None
