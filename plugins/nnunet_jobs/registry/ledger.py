"""The ledger of a dataset's models: an append-only file of hash-chained lines, ``nnUNet_results/.ledger/DatasetXXX_Name.jsonl``.

Each line is one event and holds the hash of the line before it, so that no line can be changed, removed or moved without notice. A
small file beside it, the head, holds the number and hash of the newest line, so that lines that are cut off at the end are noticed too.
A ledger holds names of models and people, numbers and file hashes, but never case ids or anything else of patients.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import locked, make_parents, open_new, read_object, sha256_file, sync_directory, write_json
from nnunet_jobs.contract.storage.workspace import Workspace

log = logging.getLogger("nnunet_jobs")
SCHEMA = 1
FOLDER = ".ledger"
LINES, HEAD = ".jsonl", ".head.json"
"""Endings of a ledger's two files."""
_LONGEST = 1000


class Event(StrEnum):
    """What happened."""

    REGISTERED = "registered"
    """A model's card was written, for the first time or again."""
    TRAINED = "trained"
    """A model was trained."""
    JUDGED = "judged"
    """A model was compared with the champion."""
    ASKED = "asked"
    """People were asked to approve a model."""
    APPROVED = "approved"
    """A person approved it."""
    DECLINED = "declined"
    """A person, or the end of the time to answer, declined it."""
    PROMOTED = "promoted"
    """A model became the champion."""
    ROLLED_BACK = "rolled_back"
    """A model that had been the champion before became it again."""
    PINNED = "pinned"
    """The champion stays until a person releases it."""
    RELEASED = "released"
    """Policies may promote again, after a pin or a rollback."""
    RETIRED = "retired"
    """A model will never be the champion again."""
    DEMOTED = "demoted"
    """The champion stopped being it, and no other model took its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a ledger.

    Attributes:
        schema: Form of the line.
        number: Position in the ledger, from 1.
        at: Time in UTC, ISO 8601.
        event: What happened.
        model: The model that it happened to; None where there is none.
        before: The champion before a move; None where there was none.
        by: Name of a person, or the job or the DAG run that did it.
        why: The reason, in one sentence.
        facts: JSON object with what belongs to the event, such as the numbers of a judgement.
        files: Path relative to ``nnUNet_results`` to sha256, of files that the event relies on.
        previous: Hash of the line before; empty for the first.
        hash: sha256 of the other fields as canonical JSON.
    """

    schema: int = SCHEMA
    number: int
    at: str
    event: Event
    model: str | None = None
    before: str | None = None
    by: str
    why: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    previous: str
    hash: str


def ledger_path(workspace: Workspace, dataset: str) -> Path:
    """The file of a dataset's ledger."""
    return Path(workspace.results) / FOLDER / f"{dataset}{LINES}"


def entries(workspace: Workspace, dataset: str, *, damaged: bool = False) -> list[Entry]:
    """All entries of a dataset's ledger, the oldest first. A last line that a killed writer left unfinished is not one.

    Args:
        workspace: Whose ledger.
        dataset: Full name of the dataset.
        damaged: Whether lines that cannot be read are left out, with a warning.

    Raises:
        ConfigError: A line cannot be read.
    """
    path = ledger_path(workspace, dataset)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(whole_lines(data), 1):
        try:
            found.append(_entry(path, number, line))
        except ConfigError as error:
            if not damaged:
                raise
            log.warning("%s", error)
    return found


def append(
    workspace: Workspace,
    dataset: str,
    event: Event,
    *,
    by: str,
    why: str,
    model: str | None = None,
    before: str | None = None,
    facts: Mapping[str, Any] | None = None,
    files: Iterable[Path] = (),
) -> Entry:
    """Write one entry. It is on the disk when this returns; a process that is killed meanwhile leaves all of the entry or nothing.

    A ledger with a damaged end is continued from its head, so that a rollback never waits for a repair. The damage stays visible to
    :func:`~nnunet_jobs.registry.verification.verify`.

    Args:
        workspace: Whose ledger.
        dataset: Full name of the dataset.
        event: What happened.
        by: Name of a person, or the job or DAG run that did it; one line.
        why: The reason, in one sentence; one line.
        model: The model that it happened to.
        before: The champion before a move.
        facts: JSON object with what belongs to the event; counts, but never case ids.
        files: Files below ``nnUNet_results`` whose hashes are written down; an evidence page, for example.

    Raises:
        ConfigError: ``by`` or ``why`` is no single line, or a file lies elsewhere.
    """
    for name, text in (("by", by), ("why", why)):
        if not text.strip() or not text.isprintable() or len(text) > _LONGEST:
            raise ConfigError(field=name, value=text, problem=f"must be one line of at most {_LONGEST} characters")
    hashes = {_relative(workspace, path): sha256_file(path) for path in files}
    path = ledger_path(workspace, dataset)
    with locked(Path(workspace.results) / ".locks" / f"{dataset}-ledger.lock", interval=0.02):
        make_folder(workspace)
        new = not path.exists()
        fd = open_new(path, os.O_RDWR)
        try:
            size = _remove_unfinished(fd)
            number, previous = _end(os.pread(fd, size, 0), read_object(_head_path(path)))
            made: dict[str, Any] = {
                "schema": SCHEMA,
                "number": number + 1,
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "event": event.value,
                "model": model,
                "before": before,
                "by": by,
                "why": why,
                "facts": dict(facts or {}),
                "files": hashes,
                "previous": previous,
            }
            made["hash"] = entry_hash(made)
            _write(fd, size, (line_of(made) + "\n").encode(), path)
        finally:
            os.close(fd)
        if new:
            sync_directory(path.parent)
        write_json(_head_path(path), {"schema": SCHEMA, "number": made["number"], "hash": made["hash"]})
    return Entry(**{**made, "event": event})


def entry_hash(fields_of_entry: Mapping[str, Any]) -> str:
    """sha256 of an entry's canonical JSON, without the hash itself."""
    data = {name: value for name, value in fields_of_entry.items() if name != "hash"}
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def line_of(fields_of_entry: Mapping[str, Any]) -> str:
    """An entry as it stands in the file. A line that is written in another way is a changed one."""
    return json.dumps(fields_of_entry, allow_nan=False)


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry as a JSON object."""
    return asdict(entry)


def whole_lines(data: bytes) -> Iterator[bytes]:
    """Lines that end; what follows the last line end was never finished."""
    yield from data.split(b"\n")[:-1]


def _head_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(LINES) + HEAD)


def _entry(path: Path, number: int, line: bytes) -> Entry:
    known = {item.name for item in fields(Entry)}
    try:
        data = json.loads(line)
        return Entry(**{**{name: value for name, value in data.items() if name in known}, "event": Event(data["event"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: line {number} cannot be read ({error}); `python -m nnunet_jobs verify-ledger` says what was changed; "
            "restore the file from a backup"
        ) from error


def _relative(workspace: Workspace, path: Path) -> str:
    root = os.path.abspath(workspace.results)  # links are not followed: .versions may lie on another disk
    found = Path(os.path.abspath(path))
    if not found.is_relative_to(root):
        raise ConfigError(field="files", value=str(path), problem=f"must lie below {workspace.results}")
    return found.relative_to(root).as_posix()


def make_folder(workspace: Workspace) -> None:
    """Make the folder of the ledgers where it is missing."""
    folder = Path(workspace.results) / FOLDER
    if not folder.is_dir():
        make_parents(folder / "ledger")
        sync_directory(folder.parent)


def _remove_unfinished(fd: int) -> int:
    """Cut off a last line without its line end. Returns the size that is left."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    end = data.rfind(b"\n") + 1
    if end < size:
        os.ftruncate(fd, end)
    return end


def _end(data: bytes, head: Mapping[str, Any]) -> tuple[int, str]:
    """Number and hash that the next entry follows: of the last line, or of the head where that knows of more than the file holds."""
    number, digest = 0, ""
    if lines := list(whole_lines(data)):
        try:
            last = json.loads(lines[-1])
            number, digest = int(last["number"]), str(last["hash"])
        except (ValueError, TypeError, KeyError):
            number = len(lines)  # a damaged line: its number is counted, and nothing follows its hash
    known = head.get("number")
    if isinstance(known, int) and known >= number:
        return known, str(head.get("hash"))
    return number, digest


def _write(fd: int, size: int, line: bytes, path: Path) -> None:
    try:
        if os.pwrite(fd, line, size) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, size)  # an entry that its writer takes for failed must not be read later
        raise
