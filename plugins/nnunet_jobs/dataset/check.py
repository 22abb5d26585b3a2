"""The validator reports every fault of every case of a dataset, without registering anything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import DataError, Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.case_splits import check_places
from nnunet_jobs.dataset.sources import read_source
from nnunet_jobs.dataset.validate import CheckedCase
from nnunet_jobs.dataset.whole import check_endings, check_unused, check_whole, facts_of, ordered
from nnunet_jobs.dataset.workers import check_cases
from nnunet_jobs.sandbox.workers import TIME_LIMIT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Holds what the validator found.

    Attributes:
        cases: Number of cases.
        faults: All of them, errors first, then by case.
        summaries: Summary of each case, empty for those that could not be read.
        tables: Channels and labels, None where the description is unusable.
        layout: Layout of the source.
        seconds: Duration of the check in seconds.
    """

    cases: int
    faults: tuple[Fault, ...]
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, Any] | None = None
    layout: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the dataset can be used: it may have warnings, but no errors."""
        return not any(fault.severity == "error" for fault in self.faults)

    def to_json(self) -> dict[str, Any]:
        """Return ``ok``, ``cases`` and ``faults``, each with ``code``, ``severity``, ``case``, ``file`` and ``message``."""
        keys = ("code", "severity", "case", "file", "message")
        faults = [{key: None if getattr(fault, key) is None else str(getattr(fault, key)) for key in keys} for fault in self.faults]
        return {"ok": self.ok, "cases": self.cases, "faults": faults}


def check_dataset(
    root: Path,
    *,
    params: RegisterParams,
    processes: int = 1,
    memory_mib: int | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    beat: Callable[[], None] = lambda: None,
    look: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Report:
    """Check a dataset without writing anything.

    Args:
        root: Folder of the source.
        params: Layout, name and rules of the dataset, as for registration.
        processes: Number of processes that read at the same time.
        memory_mib: Memory of all processes together in MiB, by default what the host or its cgroup allows.
        time_limit_s: Seconds for one case, plus one for each MiB of its files.
        beat: Called when a reader makes progress; may raise to stop.
        look: Called several times a second; may raise to stop.
        progress: Called with cases done and to do.

    Raises:
        ConfigError: The folder does not exist, its layout is not recognised, or a field is wrong.
    """
    begun = time.monotonic()
    try:
        source = read_source(params, Path(os.path.realpath(root)))
    except DataError as error:
        return Report(cases=0, faults=ordered(error.faults), seconds=time.monotonic() - begun)
    cases = list(source.cases.values())
    finished = 0

    def done(_checked: CheckedCase) -> None:
        nonlocal finished
        finished += 1
        progress(finished, len(cases))

    checked = check_cases(
        source,
        cases,
        tolerance=params.spacing_tolerance,
        processes=processes,
        memory_mib=memory_mib,
        time_limit_s=time_limit_s,
        beat=beat,
        look=look,
        done=done,
    )
    faults = [*source.faults, *check_endings(source, source.file_ending()), *check_unused(source)]
    faults += [fault for case in checked for fault in case.faults]
    faults += check_whole(source, facts_of(source, checked))
    faults += check_places(params, source, checked, errors=any(fault.severity == "error" for fault in faults))
    return Report(
        cases=len(cases),
        faults=ordered(faults),
        summaries={case.case.case: case.summary or {} for case in checked},
        tables=source.tables.to_json(),
        layout=source.layout,
        seconds=time.monotonic() - begun,
    )
