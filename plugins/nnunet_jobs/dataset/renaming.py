"""Renames cases whose ids are not safe for file systems and nnU-Net, and keeps the mapping in a file with restricted access."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError, Fault
from nnunet_jobs.contract.storage.files import write_private
from nnunet_jobs.dataset.layouts.base import Source
from nnunet_jobs.dataset.names import folded, usable
from nnunet_jobs.faults.codes import Code

_STEM = 40  # characters of the readable part
_HEAD = ["id", "original"]


def safe_id(original: str) -> str:
    """Return a usable id that depends only on the original: its readable part, and 10 hex digits of its sha256."""
    plain = unicodedata.normalize("NFKD", original).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_")[:_STEM].strip("_")
    digest = hashlib.sha256(original.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{stem or 'case'}-{digest}"


def safe_group(group: str) -> str:
    """Return a patient's name in a renamed case's id, in a form that the manifest may hold."""
    return group if usable(group) else safe_id(group)


class CaseNames:
    """Keeps the new ids of a dataset's cases in a CSV file that only its owner can read.

    A case that has a row keeps its id forever; a case that was registered under its own id keeps that. The originals are JSON
    strings, so that spreadsheet programs do not mistake one for a formula, or a line break for a row.
    """

    def __init__(self, path: Path | None = None, registered: Collection[str] = ()) -> None:
        """Read what is there.

        Args:
            path: Path of the file; nothing is kept if None.
            registered: Ids that are registered already.

        Raises:
            ConfigError: The file is not what this class wrote.
        """
        self._path, self._registered = path, set(registered)
        self._ids: dict[str, str] = {}
        self._kept = 0
        if path is not None and path.exists():
            self._ids = _read(path)
            self._kept = len(self._ids)

    def apply(self, source: Source, known: Iterable[str]) -> None:
        """Give every case of a source a usable id, which does not depend on the order of the cases.

        Args:
            source: The source as it was listed; its cases, and the cases in its faults, get their ids here.
            known: Registered ids that stay.
        """
        alike: dict[str, set[str]] = {}
        for case in {*source.cases, *self._registered, *known}:
            alike.setdefault(folded(case), set()).add(case)
        taken = set(self._ids.values())
        renamed = {}
        for case in source.cases:
            own = case in self._registered and case not in taken
            if case in self._ids:
                renamed[case] = self._ids[case]
            elif not usable(case) or (alike[folded(case)] != {case} and not own):
                renamed[case] = safe_id(case)
        cases = list(source.cases.values())
        source.cases = {}
        for item in cases:
            source.add(replace(item, case=renamed.get(item.case, item.case)))
        self._ids |= {case: renamed[case] for case in sorted(renamed) if case not in self._ids}
        source.renamed = dict(self._ids)
        source.faults = [_follow(fault, renamed) for fault in source.faults]

    def save(self) -> None:
        """Write the new ids before anything is registered under them. Old rows stay where they are, new ones follow."""
        if self._path is None or len(self._ids) == self._kept:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEAD)
        for original, identity in self._ids.items():
            writer.writerow([identity, json.dumps(original, ensure_ascii=not original.isprintable())])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_private(self._path, text.getvalue().encode())
        self._kept = len(self._ids)


def _read(path: Path) -> dict[str, str]:
    ids = {}
    try:
        text = path.read_bytes().decode()
        rows = list(csv.reader(io.StringIO(text, newline="")))
        if not rows or rows[0] != _HEAD:
            raise ValueError(f"the head line is not {','.join(_HEAD)}")
        for identity, original in rows[1:]:
            ids[str(json.loads(original))] = identity
    except PermissionError as error:
        raise ConfigError(
            field="rename",
            problem=f"only the owner of {path} may use it",
            fix="run as that user, or change the owner to the user who runs this",
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(
            field="rename", problem=f"{path} cannot be read ({error})", fix="restore it: it says which case is which"
        ) from error
    return ids


def _follow(fault: Fault, renamed: dict[str, str]) -> Fault:
    """Put a fault under the case's new id; add the source's own id if the fault names no file."""
    if fault.case not in renamed:
        return fault
    message = fault.message if fault.file or fault.code == Code.CASE_DUPLICATE else f"{fault.message} (in the source: {fault.case!r})"
    return replace(fault, case=renamed[fault.case], message=message)
