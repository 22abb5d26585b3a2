"""Makes case ids, which are keyed hashes, and keeps the mapping to patients in a file that only its owner can read."""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import SCHEMA, locked, write_private

_KEY = "site.key"
_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One line of the mapping from case ids to patients.

    Attributes:
        case: Public id of the case.
        group: Public id of the group.
        patient: PatientID with its issuer.
        study: StudyInstanceUID.
        series: SeriesInstanceUIDs of the channels, in order, then of the label objects.
    """

    case: str
    group: str
    patient: str
    study: str
    series: tuple[str, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Person:
        """Read a line; fields of later versions are ignored."""
        known = {item.name: data[item.name] for item in fields(cls)}
        return cls(**{**known, "series": tuple(data["series"])})


class Identity:
    """Holds the site's key and makes ids with it.

    Ids are HMAC-SHA256 of DICOM's own identifiers, 12 hex digits, so they stay the same when a study is exported again and mean
    nothing without the key. The key is made once per workspace; if it is lost, all studies get new ids.

    Args:
        folder: :attr:`Workspace.private <nnunet_jobs.contract.storage.workspace.Workspace.private>`; made with mode 0700.

    Raises:
        ConfigError: The folder or the key is open to others, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_closed(folder)
        with locked(folder / ".lock"):
            self._key = self._load()

    def _load(self) -> bytes:
        path = self.folder / _KEY
        with contextlib.suppress(FileNotFoundError):
            _check_closed(path)
            with contextlib.suppress(ValueError):
                key = bytes.fromhex(path.read_text().strip())
                if len(key) == 32:
                    return key
            raise ConfigError(f"{path}: is damaged; restore it from a backup, since with a new key every case would get a new id")
        key = secrets.token_bytes(32)
        write_private(path, key.hex().encode() + b"\n")
        return key

    def digest(self, kind: str, *parts: str, length: int = 32) -> str:
        """Return a keyed hash of strings, ``length`` hex digits; ``kind`` separates hashes for different purposes."""
        message = json.dumps([kind, *parts]).encode()
        return hmac.new(self._key, message, "sha256").hexdigest()[:length]

    def case(self, study: str, series: str = "") -> str:
        """Return the case id of a study, or of one series of it."""
        return "c" + self.digest("case", study, series, length=_DIGITS)

    def group(self, patient: str, study: str) -> str:
        """Return the group id of a patient; of the study if the file names no patient.

        The issuer is left out: studies with and without it may be of one person, who must never be on both sides of a split.
        Two people with the same PatientID are merely on the same side.
        """
        name = patient.partition("^^^")[0]
        return "p" + (self.digest("group", name, length=_DIGITS) if name else self.digest("group of study", study, length=_DIGITS))

    def remember(self, dataset: str, people: Iterable[Person]) -> Path:
        """Add or correct lines of the dataset's mapping ``<dataset>.jsonl``; lines of other cases stay. Returns its path.

        Raises:
            ConfigError: Two studies or patients share an id (as likely as one in a million with 20000 studies), or it
                is damaged.
        """
        path = self.folder / f"{dataset}.jsonl"
        with locked(self.folder / ".lock"):
            known = self.mapping(dataset)
            for person in people:
                other = known.get(person.case)
                if other and other.study != person.study:
                    raise ConfigError(f"case {person.case}: two studies share this id; register them under two dataset_ids")
                known[person.case] = person
            _check_groups(known)
            lines = [json.dumps({"schema": SCHEMA, **asdict(known[case])}) + "\n" for case in sorted(known)]
            write_private(path, "".join(lines).encode())
        return path

    def mapping(self, dataset: str) -> dict[str, Person]:
        """Return the dataset's cases by id; empty when there is no mapping yet."""
        path = self.folder / f"{dataset}.jsonl"
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:
            return {}
        try:
            people = [Person.from_json(json.loads(line)) for line in lines]
        except (ValueError, TypeError, KeyError):
            raise ConfigError(f"{path}: is damaged; restore it from a backup, or move it away to have it written again") from None
        return {person.case: person for person in people}

    def note_files(self, dataset: str, files: Mapping[int, Path]) -> Path | None:
        """Write which file each number in the last run's faults means; remove the note when there are none."""
        path = self.folder / f"{dataset}.files.json"
        if not files:
            path.unlink(missing_ok=True)
            return None
        names: dict[str, Any] = {str(number): str(file) for number, file in sorted(files.items())}
        write_private(path, (json.dumps(names, indent=1) + "\n").encode())
        return path


def _check_groups(known: Mapping[str, Person]) -> None:
    names: dict[str, str] = {}
    for person in known.values():
        name = person.patient.partition("^^^")[0] or person.study
        if names.setdefault(person.group, name) != name:
            raise ConfigError(f"group {person.group}: two patients share this id; register their studies under two dataset_ids")


def _check_closed(path: Path) -> None:
    mode = path.stat().st_mode & 0o077
    if mode:
        raise ConfigError(f"{path}: is open to others (mode {path.stat().st_mode & 0o777:o}); it identifies patients: chmod go-rwx {path}")
