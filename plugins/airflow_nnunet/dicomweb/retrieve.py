"""Fetches a study from the archive into a folder, in parallel, and continues after an interruption.

FOLDER/<study>/<series>/<instance>.dcm      named by hashes of the UIDs; renamed from a temporary file when complete
FOLDER/.retrieved/<study>.json              every file with its sha256, written last
FOLDER/.retrieved/<study>.jsonl             the same in lines, while the study is not complete
FOLDER/.retrieved/<study>.lock              kernel lock: of two tasks with the same study, one waits for the other
"""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airflow_nnunet.dicomweb.archive import Archive
from airflow_nnunet.dicomweb.ledger import parsed
from airflow_nnunet.dicomweb.model import SeriesFilter
from nnunet_jobs.contract.storage.files import content_hash, locked, read_json, sha256_file, write_atomic, write_record

log = logging.getLogger(__name__)
RETRIEVED = ".retrieved"
_PROGRESS_EVERY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved:
    """Describes one study on disk.

    Attributes:
        name: Name of the study's folder.
        folder: Absolute path of that folder.
        series: Number of series in the folder now.
        instances: Number of instances in the folder now.
        fetched: Number of instances that were fetched now; the others were already there.
        removed: Number of files removed because the archive no longer has them.
    """

    name: str
    folder: str
    series: int
    instances: int
    fetched: int
    removed: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object of counts and paths."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    file: str
    series: str
    sop_uid: str


def study_name(study: str, only: SeriesFilter) -> str:
    """Return the name of a study's folder: a hash of UID and filter, so that two filters never mix their series."""
    return content_hash([study, only.modality, only.description], length=24)


def retrieve_study(archive: Archive, study: str, folder: Path, *, only: SeriesFilter, workers: int = 4) -> Retrieved:
    """Fetch a study's series into ``folder`` and make the copy equal to what the archive has now.

    Args:
        study: StudyInstanceUID, already checked.
        only: Series to fetch.
        workers: Number of requests at once.

    Returns:
        The counts; zero series if the archive has none that match.

    Raises:
        ArchiveUnavailable: See :class:`Archive`. Fetched instances are kept and not fetched again.
        ArchiveRefused: See :class:`Archive`. Fetched instances are kept and not fetched again.
        InstancesRejected: See :class:`Archive`. Fetched instances are kept and not fetched again.
    """
    name = study_name(study, only)
    notes = folder / RETRIEVED
    notes.mkdir(parents=True, exist_ok=True)
    with locked(notes / f"{name}.lock"):
        wanted = _wanted(archive, study, only)
        target = folder / name
        journal = _Journal(notes / name)
        whole = {item.file for item in wanted if journal.is_whole(target, item.file)}
        missing = [item for item in wanted if item.file not in whole]
        log.info("study %s has %s instances, of which %s are already here", name, len(wanted), len(whole))
        _fetch_all(archive, study, missing, target, journal, workers)
        removed = _remove_others(target, {item.file for item in wanted})
        journal.complete({item.file for item in wanted})
    return Retrieved(
        name=name,
        folder=str(target),
        series=len({item.series for item in wanted}),
        instances=len(wanted),
        fetched=len(missing),
        removed=removed,
    )


def _wanted(archive: Archive, study: str, only: SeriesFilter) -> list[_Wanted]:
    return [
        _Wanted(file=f"{_hash(series.uid)}/{_hash(uid)}.dcm", series=series.uid, sop_uid=uid)
        for series in archive.series(study, only, counted=True)
        for uid in archive.instances(study, series)
    ]


def _fetch_all(archive: Archive, study: str, missing: list[_Wanted], target: Path, journal: _Journal, workers: int) -> None:
    done = 0
    counter = threading.Lock()

    def fetch(item: _Wanted) -> None:
        nonlocal done
        data = archive.fetch(study, item.series, item.sop_uid)
        path = target / item.file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
        journal.add(item.file, sha256_file(path))
        with counter:
            done += 1
            if done % _PROGRESS_EVERY == 0:
                log.info("%s of %s instances fetched", done, len(missing))

    executor = ThreadPoolExecutor(max_workers=max(1, min(workers, len(missing))), thread_name_prefix="wado")
    try:
        futures = [executor.submit(fetch, item) for item in missing]
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()
    finally:
        # After a failure no new request is started; requests that are running end, and their results are kept.
        executor.shutdown(wait=True, cancel_futures=True)


def _remove_others(target: Path, wanted: set[str]) -> int:
    """Delete files that the archive has withdrawn, and temporary files of a killed try."""
    removed = 0
    for path in sorted(target.glob("*/*")) if target.is_dir() else ():
        if str(path.relative_to(target)) in wanted:
            continue
        if path.suffix == ".dcm":
            path.unlink()
            removed += 1
        elif path.suffix == ".tmp":
            path.unlink()
    return removed


def _hash(uid: str) -> str:
    return content_hash(uid, length=24)


class _Journal:
    """Records the sha256 of every fetched instance, so that it is still known after a kill."""

    def __init__(self, base: Path) -> None:
        self._manifest = base.with_suffix(".json")
        self._lines = base.with_suffix(".jsonl")
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        if self._manifest.is_file():
            self._known.update(read_json(self._manifest)["files"])
        if self._lines.is_file():
            for line in self._lines.read_text().splitlines():
                self._known.update(parsed(line))

    def is_whole(self, target: Path, file: str) -> bool:
        """Return whether a file exists with the content that was fetched."""
        path = target / file
        return file in self._known and path.is_file() and sha256_file(path) == self._known[file]

    def add(self, file: str, digest: str) -> None:
        """Record a fetched instance. If a power cut loses the line, the instance is fetched again."""
        with self._lock:
            self._known[file] = digest
            with open(self._lines, "a") as lines:
                lines.write(json.dumps({file: digest}) + "\n")

    def complete(self, files: set[str]) -> None:
        """Write the manifest of a complete study."""
        write_record(self._manifest, {"complete": True, "files": {file: self._known[file] for file in sorted(files)}})
        self._lines.unlink(missing_ok=True)
