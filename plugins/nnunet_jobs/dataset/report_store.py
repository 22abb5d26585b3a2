"""Writes the report of a registration. Summaries are kept, so that it shows the whole dataset even if few cases were checked now."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.storage.files import SCHEMA, content_hash, read_json, write_atomic
from nnunet_jobs.dataset.validate import CheckedCase
from nnunet_jobs.report.page import render_report
from nnunet_jobs.report.summary import VERSION

log = logging.getLogger("nnunet_jobs")
REPORT = "report.html"


class SummaryStore:
    """Caches summaries and warnings of registered cases by content; what is missing is made from the source again.

    Args:
        path: The JSON file, ``nnUNet_raw/.state/<dataset>.summaries.json``. It holds small pictures of patients, as
            nnUNet_raw does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._new: dict[str, dict[str, Any]] = {}
        try:
            data = read_json(path)
            self._kept: dict[str, dict[str, Any]] = dict(data["summaries"]) if data["version"] == VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):  # only a cache
            self._kept = {}

    def keep(self, checked: CheckedCase) -> None:
        """Remember the result of a check."""
        warnings = [asdict(fault) for fault in checked.faults if fault.severity == "warning"]
        self._new[_key(checked.hashes, checked.label_hash)] = {"summary": checked.summary, "warnings": warnings}

    def has(self, entry: Mapping[str, Any]) -> bool:
        """Whether there is a summary of a registered case's present content, by its manifest entry."""
        return self._record(entry) is not None

    def summary(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the summary of a registered case; empty when none is kept."""
        return dict((self._record(entry) or {}).get("summary") or {})

    def warnings(self, case: str, entry: Mapping[str, Any]) -> list[Fault]:
        """Return the warnings of a registered case."""
        return [replace(Fault.from_json(fault), case=case) for fault in (self._record(entry) or {}).get("warnings", ())]

    def save(self, cases: Mapping[str, Mapping[str, Any]]) -> None:
        """Write what belongs to these manifest entries; everything else is forgotten."""
        wanted = {_key_of(entry) for entry in cases.values()}
        now = {key: record for key, record in {**self._kept, **self._new}.items() if key in wanted}
        if now == self._kept and self.path.exists():
            return
        data = {"schema": SCHEMA, "version": VERSION, "summaries": now}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(data, allow_nan=False, separators=(",", ":")).encode())
        except OSError as error:
            log.warning("%s cannot be written (%s); the next run summarises all cases again", self.path, error.strerror)

    def _record(self, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        key = _key_of(entry)
        return self._new.get(key) or self._kept.get(key)


class Reporter:
    """Gathers what one registration finds and writes ``report.html`` into its job folder, whether it succeeds or not."""

    def __init__(self, *, dataset: str, job: Path, store: SummaryStore) -> None:
        self.dataset, self.path, self.store = dataset, job / REPORT, store
        self._started = time.monotonic()
        self._tables: Mapping[str, Any] = {}
        self._registered: Mapping[str, Any] = {}
        self._checked: Mapping[str, CheckedCase] = {}
        self._warnings: Sequence[Fault] = ()

    def checked(
        self,
        tables: Mapping[str, Any],
        registered: Mapping[str, Any],
        checked: Mapping[str, CheckedCase],
        warnings: Sequence[Fault] = (),
    ) -> None:
        """Take the check's result: the source's tables, the manifest entries so far, the cases read, and warnings about the whole."""
        self._tables, self._registered, self._checked, self._warnings = tables, registered, checked, warnings

    def succeeded(self, cases: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Write the report of the cases registered now, by their manifest entries. Returns the file's name in the job folder."""
        for case in self._checked.values():
            self.store.keep(case)
        self.store.save(cases)
        shown = {case: {**self.store.summary(entry), "split": entry["split"]} for case, entry in cases.items()}
        known = [fault for case, entry in cases.items() for fault in self.store.warnings(case, entry)]
        return self._write(shown, [*self._warnings, *known])

    def failed(self, faults: Sequence[Fault]) -> str | None:
        """Write the report of what should have been registered, with its faults. The kept summaries are unchanged."""
        shown: dict[str, Mapping[str, Any]] = {}
        warnings = list(self._warnings)
        for case, entry in self._registered.items():
            if case not in self._checked:
                shown[case] = {**self.store.summary(entry), "split": entry["split"]}
                warnings += self.store.warnings(case, entry)
        for case, checked in self._checked.items():
            shown[case] = checked.summary or {}
            warnings += [fault for fault in checked.faults if fault.severity == "warning"]
        return self._write(shown, [*faults, *warnings])

    def _write(self, cases: Mapping[str, Mapping[str, Any]], faults: Sequence[Fault]) -> str | None:
        seconds = time.monotonic() - self._started
        once = list(dict.fromkeys(faults))
        page = render_report(title=self.dataset, tables=self._tables, cases=cases, faults=once, seconds=seconds)
        try:
            write_atomic(self.path, page.encode())
        except OSError as error:  # a full disk must neither fail a sound dataset nor hide the faults of another
            log.warning("%s cannot be written: %s", self.path, error.strerror)
            return None
        return self.path.name


def _key_of(entry: Mapping[str, Any]) -> str:
    return _key(entry["source"]["images"], entry["source"]["label"])


def _key(images: Sequence[str], label: str | None) -> str:
    return content_hash({"images": list(images), "label": label}, length=32)
