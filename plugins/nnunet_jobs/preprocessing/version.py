"""Finds and verifies immutable preprocessed versions on disk, and stages and publishes new ones.

``nnUNet_preprocessed/.versions/<v>/DatasetXXX_Name/version.json`` lists every file of a version with size, modification time
and sha256, so that content, and never mere existence, decides what is complete and reusable.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import read_json, repoint, sha256_file, sync_directory, sync_file, write_json
from nnunet_jobs.contract.storage.workspace import VERSIONS, Workspace

log = logging.getLogger(__name__)

SCHEMA = 1
RECORD = "version.json"
JOURNAL = "journal.jsonl"
CASE_SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")
# Up to this many bytes a version is verified by hashing all of it; beyond, a file is trusted while its size and
# modification time are those recorded, and hashed only when they are not. 1 GiB takes about a second on two cores.
FULL_HASH_BYTES = 1 << 30

FileRecord = list[Any]  # [size in bytes, modification time in ns, sha256]: a list because it lives in JSON


def record_file(path: Path) -> FileRecord:
    """Sync one new file, so that it survives a power cut after the version's rename, and return its record for ``version.json``."""
    sync_file(path)
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, sha256_file(path)]


def file_matches(path: Path, record: FileRecord, *, hashed: bool) -> bool:
    """Whether a file is the recorded one. ``hashed``: read all bytes; otherwise only if size or time differ."""
    size, changed, digest = record
    try:
        status = path.lstat()
        if path.is_symlink() or status.st_size != size:
            return False
        return bool((not hashed and status.st_mtime_ns == changed) or sha256_file(path) == digest)
    except OSError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A published version, or the files of an interrupted run, as a source of finished files.

    Attributes:
        root: The ``DatasetXXX_Name`` folder.
        record: Content of ``version.json``.
    """

    root: Path
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the version's name, a content hash."""
        return str(self.record["version"])

    @property
    def files(self) -> Mapping[str, FileRecord]:
        """Return relative path to record for all files except ``version.json``."""
        files: Mapping[str, FileRecord] = self.record["files"]
        return files

    @property
    def withdrawn(self) -> Mapping[str, Any]:
        """Return the cases that were withdrawn from it; a version that lost cases is intact, but is not used for work any more."""
        cases: Mapping[str, Any] = self.record.get("withdrawn", {})
        return cases

    @property
    def hashed(self) -> bool:
        """Whether verification reads all bytes; see FULL_HASH_BYTES."""
        return sum(int(record[0]) for record in self.files.values()) <= FULL_HASH_BYTES

    def json(self, name: str) -> Any:
        """Read one of the version's JSON files."""
        return read_json(self.root / name)

    def plans(self) -> dict[str, Any]:
        """Read the version's plans."""
        plans: dict[str, Any] = self.json(f"{self.record['plans']}.json")
        return plans

    def damage(self) -> list[str]:
        """Return relative paths that are missing, changed or unexpected (a stray file in a case folder breaks training)."""
        expected = set(self.files)
        found = {str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir()} - {RECORD}
        hashed = self.hashed
        wrong = [name for name in expected if not file_matches(self.root / name, self.files[name], hashed=hashed)]
        return sorted({*wrong, *(found - expected)})


def published(workspace: Workspace, dataset: str) -> list[Version]:
    """Return all versions of a dataset: first the one that the link points to, then the others from new to old."""
    current = workspace.current_version(dataset)
    found = []
    for path in (Path(workspace.preprocessed) / VERSIONS).glob(f"[!.]*/{dataset}/{RECORD}"):
        try:
            record = read_json(path)
            if record["schema"] == SCHEMA and record["version"] == path.parent.parent.name:
                found.append(Version(root=path.parent, record=record))
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s is not readable and is not used as a source", path)
    return sorted(found, key=lambda version: (version.name != current, -int(version.record["generation"]), version.name))


class Staging:
    """Manages a hidden folder below ``.versions`` in which a version is built. The caller holds the dataset's lock.

    Every finished file is recorded in a journal at once, so that the next attempt can use the files of a killed one.
    """

    def __init__(self, workspace: Workspace, dataset: str) -> None:
        self._versions = Path(workspace.preprocessed) / VERSIONS
        self._prefix = f".staging-{dataset}-"
        self._abandoned = sorted(self._versions.glob(f"{self._prefix}*"))
        self.dataset = dataset
        self.path = self._versions / f"{self._prefix}{os.getpid()}-{secrets.token_hex(4)}"
        self.root = self.path / dataset
        self.root.mkdir(parents=True)
        self.files: dict[str, FileRecord] = {}
        self._lock = threading.Lock()

    def abandoned(self) -> Iterator[Version]:
        """Yield what killed attempts had finished. They hold no lock any more, since this process holds it."""
        for path in self._abandoned:
            files: dict[str, FileRecord] = {}
            cases: dict[str, dict[str, str]] = {}
            with contextlib.suppress(FileNotFoundError), open(path / JOURNAL, encoding="utf-8") as journal:
                for line in journal:
                    with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line may be cut
                        entry = json.loads(line)
                        files.update(entry["files"])
                        cases.setdefault(entry["identifier"], {})[entry["case"]] = entry["key"]
            yield Version(root=path / self.dataset, record={"version": path.name, "files": files, "cases": cases, "labels": {}})

    def drop_abandoned(self) -> None:
        """Remove the files of killed attempts, after the useful ones were linked here."""
        for path in self._abandoned:
            shutil.rmtree(path, ignore_errors=True)
        self._abandoned = []

    def note_case(self, identifier: str, case: str, key: str, files: Mapping[str, FileRecord]) -> None:
        """Record a finished case. Called by many threads."""
        entry = json.dumps({"identifier": identifier, "case": case, "key": key, "files": dict(files)})
        with self._lock, open(self.path / JOURNAL, "a", encoding="utf-8") as journal:
            journal.write(entry + "\n")
            self.files.update(files)

    def link(self, source: Path, name: str) -> None:
        """Take a verified file of another version by hard link, or copy it if links are not possible."""
        target = self.root / name
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
            sync_file(target)

    def publish(self, record: Mapping[str, Any]) -> Version:
        """Make the version visible by one rename. A damaged version of the same name is moved out of the way first."""
        final = self._versions / str(record["version"])
        complete = {**record, "files": self.files}
        (self.path / JOURNAL).unlink(missing_ok=True)
        write_json(self.root / RECORD, complete)
        for parent, _, _ in os.walk(self.path):
            sync_directory(Path(parent))
        aside = self._versions / f"{self._prefix}damaged-{secrets.token_hex(4)}"
        if final.exists():
            (final / self.dataset / RECORD).exists()  # raises without permission: it belongs to another user and is not damaged
            os.rename(final, aside)
        os.rename(self.path, final)
        sync_directory(self._versions)
        shutil.rmtree(aside, ignore_errors=True)
        return Version(root=final / self.dataset, record=complete)

    def discard(self) -> None:
        """Remove the folder, which was never visible."""
        shutil.rmtree(self.path, ignore_errors=True)


def make_current(workspace: Workspace, dataset: str, version: Version) -> None:
    """Point ``nnUNet_preprocessed/DatasetXXX_Name`` to a version, atomically."""
    link = workspace.preprocessed_link(dataset)
    if workspace.current_version(dataset) != version.name or not link.exists():
        repoint(link, version.root)


def check_link(workspace: Workspace, dataset: str) -> None:
    """Refuse to begin if a folder of nnU-Net's own preprocessing is in the link's place.

    Raises:
        ConfigError: There is such a folder; it may be a user's data, so it is never removed.
    """
    link = workspace.preprocessed_link(dataset)
    if link.exists() and not link.is_symlink():
        raise ConfigError(
            field="dataset", value=dataset, problem=f"{link} is a folder, not a link to a version", fix="move it away and run again"
        )
