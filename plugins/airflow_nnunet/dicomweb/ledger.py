"""Records in a file of the workspace which studies a sensor has handed out and how they ended.

    jobs/.studies/<hash>.jsonl    one line for each hand-out and each outcome; a study's last line is valid
    jobs/.studies/<hash>.lock     kernel lock for writers

The file is kept for years. XComs and Airflow's state store are deleted after a while (`airflow db clean`, 30 days), and
the state store takes 65,535 bytes a value; a study takes about 200 bytes here. The first line names the sensor and its
query. The file never contains names of patients.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import append_lines, content_hash, locked, write_atomic
from nnunet_jobs.contract.storage.marker import MarkedWorkspaces, open_workspace
from nnunet_jobs.contract.storage.permissions import explain_permission_error, workspace_umask
from nnunet_jobs.contract.storage.workspace import Workspace

FOLDER = ".studies"
OUT, DONE, FAILED = "out", "done", "failed"
# A file with more than this many outdated lines is rewritten.
_STALE_LINES = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Records one study that was handed out.

    Attributes:
        study: StudyInstanceUID.
        instances: Number of instances of the study.
        meant: Number of instances in the series that were waited for.
        run: DAG run that got the study.
        index: Position of the study in that run's list, from 0.
        offers: Number of runs that got the study since it last had new images.
        max_offers: The sensor's ``max_offers`` at that time.
        state: ``out`` until that run has ended, then ``done`` or ``failed``.
        at: Time of the hand-out, as UTC in ISO 8601.
    """

    study: str
    instances: int
    meant: int
    run: str
    index: int
    offers: int = 1
    max_offers: int = 1
    state: str = OUT
    at: str = ""

    @property
    def given_up(self) -> bool:
        """Return whether the study's tasks failed in ``max_offers`` runs, so that no run gets it again."""
        return self.state == FAILED and self.offers >= self.max_offers

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """Read a line, without fields of later versions.

        Raises:
            TypeError: A field is missing.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})


class StudyLedger:
    """Reads and writes the file of one sensor. Hold :meth:`turn` for a read and an append that depends on it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, workspace: Workspace, owner: Mapping[str, Any], *, memory: MarkedWorkspaces | None = None) -> StudyLedger:
        """Return the ledger of a sensor. It is created if missing, with the permissions that ``sharing`` sets.

        Args:
            owner: Identifies the sensor and its query, and is written to the file's first line.
            memory: See :func:`open_workspace`.

        Raises:
            NotMounted: The workspace's share is not mounted; an empty ledger there would make every study new.
            ConfigError: This user may not write into the jobs folder.
        """
        ledger = cls(Path(workspace.jobs) / FOLDER / f"{content_hash(owner, length=24)}.jsonl")
        try:
            with workspace_umask(workspace):
                open_workspace(workspace, memory=memory)
                ledger.path.parent.mkdir(exist_ok=True, mode=0o770)  # never for others; less the umask
                with ledger.turn():
                    if not ledger.path.exists():
                        line = json.dumps({"schema": 1, **owner}) + "\n"
                        write_atomic(ledger.path, line.encode(), mode=0o660)
        except PermissionError as error:
            raise ConfigError(where="[nnunet]", field="jobs", problem=explain_permission_error(error)) from error
        return ledger

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock, so that no other process appends between a read and an append."""
        with locked(self.path.with_suffix(".lock"), interval=0.02, parents=False):
            yield

    def owner(self) -> dict[str, Any]:
        """Return the DAG, task and query that the ledger belongs to."""
        with open(self.path, errors="replace") as file:
            first = parsed(file.readline())
        return {name: value for name, value in first.items() if name != "schema"}

    def read(self) -> dict[str, Entry]:
        """Return the studies by UID. A line that a kill cut off is skipped, and its study is new again."""
        found: dict[str, Entry] = {}
        for line in self.path.read_text(errors="replace").splitlines():
            with contextlib.suppress(TypeError):  # the first line and damaged lines
                entry = Entry.from_json(parsed(line))
                found[entry.study] = entry
        return found

    def append(self, entries: Iterable[Entry]) -> None:
        """Add lines. Hold :meth:`turn`."""
        lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries)
        if lines:
            append_lines(self.path, lines.encode())
            self._shorten()

    def _shorten(self) -> None:
        """Rewrite the file without outdated lines when there are many."""
        entries = self.read()
        with open(self.path, "rb") as file:
            first = file.readline()
            lines = sum(1 for _ in file)
        if lines - len(entries) > max(_STALE_LINES, len(entries)):
            rest = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries.values())
            write_atomic(self.path, first + rest.encode(), mode=os.stat(self.path).st_mode & 0o777)


def ledgers(jobs: str | Path) -> list[StudyLedger]:
    """Return all ledgers of a jobs folder.

    Raises:
        PermissionError: This user may not read the folder.
    """
    folder = Path(jobs) / FOLDER
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [StudyLedger(folder / name) for name in names if name.endswith(".jsonl") and not name.startswith(".")]


def now() -> str:
    """Return the current time in the form that ledgers use."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def parsed(line: str) -> dict[str, Any]:
    """Parse one line of a file that is appended to. An incomplete line is empty, so that what it would say is done again."""
    try:
        data = json.loads(line)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
