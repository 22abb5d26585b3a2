"""Checks ledgers: that no line was changed, removed, moved or cut off, and that the files that they list are as they were."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import read_object, sha256_file
from nnunet_jobs.registry.ledger import FOLDER, HEAD, LINES, Event, entry_hash, line_of, whole_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the check of one ledger found.

    Attributes:
        dataset: Full name of the dataset.
        path: The ledger's file.
        entries: Number of whole lines.
        files: Number of listed files that were compared.
        faults: Sentences that name what was changed; the first one names the first line. Empty where nothing was.
        notes: Sentences about what is unusual and no fault.
    """

    dataset: str
    path: str
    entries: int = 0
    files: int = 0
    faults: Sequence[str] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)


def verify(path: Path) -> list[Verdict]:
    """Check one ledger, or all ledgers of a folder.

    Args:
        path: A ledger's file, the folder ``.ledger``, or ``nnUNet_results``.

    Raises:
        ConfigError: There is no ledger.
    """
    if path.suffix == LINES:
        found = {path} if path.exists() or _head_of(path).exists() else set()
    else:
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        found = {*folder.glob(f"Dataset*{LINES}")}
        found |= {head.with_name(head.name.removesuffix(HEAD) + LINES) for head in folder.glob(f"Dataset*{HEAD}")}
    if not found:
        raise ConfigError(
            field="path",
            value=str(path),
            problem="holds no ledger",
            fix=f"name a file (*{LINES}), a folder {FOLDER}, or nnUNet_results",
        )
    return [_verify(ledger) for ledger in sorted(found)]


def _verify(path: Path) -> Verdict:
    dataset = path.name.removesuffix(LINES)
    head = read_object(_head_of(path))  # before the lines: whoever writes one meanwhile writes the head last
    data = path.read_bytes() if path.exists() else b""
    lines = list(whole_lines(data))
    read = [_parse(line) for line in lines]
    notes = []
    if data and not data.endswith(b"\n"):
        notes.append(f"Line {len(lines) + 1} was never finished, because its writer was killed; the next entry takes its place.")
    whole = [entry for entry in read if entry is not None]
    if fault := _broken_chain(read) or _cut_off(head, _head_of(path).name, whole):
        return Verdict(dataset=dataset, path=str(path), entries=len(lines), faults=(fault,), notes=tuple(notes))
    files, faults, remarks = _listed_files(path.parent.parent, whole)
    return Verdict(dataset=dataset, path=str(path), entries=len(lines), files=files, faults=tuple(faults), notes=(*notes, *remarks))


def _parse(line: bytes) -> dict[str, Any] | None:
    """The entry of a line; None for a line that is not as it was written."""
    try:
        entry = json.loads(line)
        unchanged = isinstance(entry, dict) and line_of(entry).encode() == line and entry["hash"] == entry_hash(entry)
        return entry if unchanged and isinstance(entry["number"], int) else None
    except (ValueError, KeyError):
        return None


def _broken_chain(read: Sequence[dict[str, Any] | None]) -> str | None:
    """The first line that is not what it must be."""
    numbers = {entry["number"] for entry in read if entry is not None}
    previous = ""
    for position, entry in enumerate(read, 1):
        if entry is None:
            return f"Line {position} was changed: its hash is not that of its content."
        if entry["number"] != position:
            if entry["number"] < position:
                return f"Line {position} was inserted or moved there: it is entry {entry['number']}."
            where = "stands further below" if position in numbers else "is missing"
            return f"Line {position} is entry {entry['number']}: entry {position} {where}."
        if entry["previous"] != previous:
            if position == 1:
                return "Line 1 was changed: it is not the first entry of a ledger."
            return f"Line {position - 1} was changed after line {position} had been written: line {position} holds another hash of it."
        previous = entry["hash"]
    return None


def _cut_off(head: Mapping[str, Any], name: str, whole: Sequence[Mapping[str, Any]]) -> str | None:
    """Whether the head knows of lines that are not there, or of another one."""
    if not isinstance(head.get("number"), int):
        if len(whole) < 2:  # the first writer may have been killed before it wrote the head
            return None
        return f"{name} is missing or damaged, so that nobody can say whether lines were cut off after line {len(whole)}."
    if head["number"] > len(whole):
        return f"Line {len(whole) + 1} is missing: the ledger had {head['number']} lines, and was cut off after line {len(whole)}."
    if head["number"] < 1 or whole[head["number"] - 1]["hash"] != head.get("hash"):
        return f"Line {head['number']} was changed: {name} holds another hash of it."
    return None


def _listed_files(results: Path, whole: Sequence[Mapping[str, Any]]) -> tuple[int, list[str], list[str]]:
    """Compare each listed file with the newest line that lists it; a card may be written again, and is listed again then."""
    newest: dict[str, Mapping[str, Any]] = {}
    for entry in whole:
        newest |= dict.fromkeys(entry["files"], entry)
    retired = {entry["model"] for entry in whole if entry["event"] == Event.RETIRED}
    faults, gone = [], set()
    for name, entry in newest.items():
        try:
            if sha256_file(results / name) != entry["files"][name]:
                faults.append(f"{name} was changed: line {entry['number']} lists another hash of it.")
        except (FileNotFoundError, NotADirectoryError):
            if entry["model"] in retired:
                gone.add(str(entry["model"]))
            else:
                faults.append(f"{name} is missing: line {entry['number']} lists it.")
        except OSError as error:
            faults.append(f"{name} cannot be read ({os.strerror(error.errno or 0)}): line {entry['number']} lists it.")
    return len(newest), faults, [f"Files of model {model} are gone; it was retired." for model in sorted(gone)]


def _head_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(LINES) + HEAD)
