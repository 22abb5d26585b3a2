"""Compares a source with what is registered, and finds new, changed, unchanged and missing cases with all their faults."""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.holdout import TEST
from nnunet_jobs.dataset.labels import Tables
from nnunet_jobs.dataset.manifest import HashCache, channels_of, signature_of
from nnunet_jobs.dataset.readers.pictures import spacing_beside
from nnunet_jobs.dataset.readers.volume import DamagedFile
from nnunet_jobs.dataset.sources import Source, SourceCase
from nnunet_jobs.dataset.staging import Store
from nnunet_jobs.dataset.validate import CheckedCase
from nnunet_jobs.dataset.whole import CaseFacts, check_endings, check_unused, check_whole, facts_of, ordered
from nnunet_jobs.dataset.workers import check_cases
from nnunet_jobs.faults.codes import Code

log = logging.getLogger("nnunet_jobs")
Item = TypeVar("Item")
Result = TypeVar("Result")
_REPORT_S = 0.5
_THREADS = 16


@dataclass(slots=True, kw_only=True)
class Changes:
    """Holds case ids by what changed.

    Attributes:
        checked: Cases to be brought, with what their check found: all that are added, changed or damaged.
        added: New cases of the source.
        changed: Cases of the source that are registered with other content.
        unchanged: Cases of the source that are registered as they are.
        kept: Registered cases that are no longer in the source and stay.
        removed: Registered cases that are no longer in the source and are removed.
        damaged: Cases whose registered files are missing or differ from the manifest; they are brought again.
        faults: All faults that forbid the registration.
        warnings: Faults that a person should look at.
    """

    checked: dict[str, CheckedCase] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    unchanged: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)


def compare(
    params: RegisterParams,
    context: StepContext,
    source: Source,
    registered: Mapping[str, Any],
    *,
    store: Store,
    cache: HashCache,
    ending: str,
) -> Changes:
    """Check new and changed cases, recognise unchanged ones by content, and check that registered files are still sound.

    Args:
        params: Parameters of the step.
        context: Context of the step.
        source: The source as it was listed.
        registered: The manifest's cases.
        store: The dataset's folder.
        cache: Cache of file hashes.
        ending: Ending of the registered files.
    """
    beat = beat_or_stop(context)
    cases = list(source.cases.values())
    same = parallel(context, "compare", lambda case: _is_registered(case, source, registered.get(case.case), cache, beat), cases)
    changes = Changes(unchanged={case.case for case, unchanged in zip(cases, same, strict=True) if unchanged})
    found = [*source.faults, *check_endings(source, ending), *check_unused(source)]
    found += _check(changes, params, context, source, [case for case in cases if case.case not in changes.unchanged], cache)
    for name in changes.checked:
        (changes.changed if name in registered else changes.added).add(name)
    gone = set(registered) - set(source.cases)
    (changes.removed if params.on_removed == "drop" else changes.kept).update(gone)
    if gone:
        log.info(
            "%d registered cases are not in the source (on_removed=%s): %s", len(gone), params.on_removed, ", ".join(sorted(gone)[:20])
        )
    _apply_policies(params, changes, gone)
    staying = {name: registered[name] for name in sorted(changes.unchanged | changes.kept)}
    for name, entry in staying.items():
        changes.faults += _check_tables(name, entry, source.tables)
    changes.damaged = store.damaged(staying, ending, cache, beat)
    message = "its registered files are damaged and the source no longer has it; bring it back, or set on_removed to drop"
    changes.faults += [Fault(code=Code.CASE_REMOVED, case=name, message=message) for name in sorted(changes.damaged & changes.kept)]
    damaged = sorted(changes.damaged & changes.unchanged)
    for name in damaged:
        log.warning("%s: registered files are missing or damaged and are brought from the source again", name)
    found += _check(changes, params, context, source, [source.cases[name] for name in damaged], cache)
    found += check_whole(source, [*facts_of(source, list(changes.checked.values())), *_registered_facts(staying, changes)])
    changes.faults += [fault for fault in found if fault.severity == "error"]
    changes.warnings += [fault for fault in ordered(found) if fault.severity == "warning"]
    for fault in changes.warnings:
        log.warning("%s", fault)
    return changes


def _check(
    changes: Changes, params: RegisterParams, context: StepContext, source: Source, cases: list[SourceCase], cache: HashCache
) -> list[Fault]:
    """Read cases, remember their hashes, and return their faults."""
    signatures = {case.case: _signatures(case) for case in cases}
    begun = time.time_ns()
    checked = read_cases(params, context, source, cases, phase="validate")
    for item in checked:
        changes.checked[item.case.case] = item
        if not item.errors:
            hashes = [*item.hashes, *([item.label_hash] if item.label_hash else [])]
            for path, signature, sha256 in zip(_files(item.case), signatures[item.case.case], hashes, strict=False):
                cache.learn(path, sha256, signature, begun)
    return [fault for item in checked for fault in item.faults]


def read_cases(params: RegisterParams, context: StepContext, source: Source, cases: list[SourceCase], *, phase: str) -> list[CheckedCase]:
    """Check cases in separate processes, as many as the job has cores, and report progress and heartbeats."""
    finished, reported = 0, 0.0

    def done(_checked: CheckedCase) -> None:
        nonlocal finished, reported
        finished += 1
        if finished == len(cases) or time.monotonic() - reported > _REPORT_S:
            context.progress(phase, finished, len(cases))
            reported = time.monotonic()

    return check_cases(
        source,
        cases,
        tolerance=params.spacing_tolerance,
        processes=max(1, context.cpus),
        memory_mib=context.memory_mib,
        beat=context.beat,
        look=context.check_stop,
        done=done,
    )


def _registered_facts(staying: Mapping[str, Mapping[str, Any]], changes: Changes) -> list[CaseFacts]:
    return [
        CaseFacts(
            case=name,
            file=None,
            labelled=bool(entry["values"]),
            shape=entry["shape"],
            values=entry["values"],
            spacing=entry["spacing"],
            order=entry.get("order", ""),
            planar=entry.get("planar", False),
        )
        for name, entry in staying.items()
        if name not in changes.checked
    ]


def _files(case: SourceCase) -> list[Path]:
    return [*case.images, *([case.label] if case.label else [])]


def _signatures(case: SourceCase) -> list[list[int]]:
    try:
        return [signature_of(path) for path in _files(case)]
    except OSError:
        return []  # the check names the file and the reason


def _apply_policies(params: RegisterParams, changes: Changes, gone: set[str]) -> None:
    if params.on_removed == "fail":
        message = "is registered but no longer in the source; bring it back, or set on_removed to keep or drop"
        changes.faults += [Fault(code=Code.CASE_REMOVED, case=name, message=message) for name in sorted(gone)]
    if params.on_changed == "fail":
        message = "is registered with other content; restore it in the source, or set on_changed to update"
        changes.faults += [Fault(code=Code.CASE_CHANGED, case=name, message=message) for name in sorted(changes.changed)]


def _is_registered(case: SourceCase, source: Source, entry: Mapping[str, Any] | None, cache: HashCache, beat: Callable[[], None]) -> bool:
    """Whether the case is registered with exactly this content."""
    if not entry or (entry["split"] != TEST) != case.labelled or channels_of(entry) != source.tables.channels:
        return False
    known = [*entry["source"]["images"], *([entry["source"]["label"]] if entry["source"]["label"] else [])]
    try:
        if case.images[0].name.endswith((".tif", ".tiff")) and list(spacing_beside(case.images[0], label=False)[0]) != entry["spacing"]:
            return False  # the spacing of a 3D TIFF lies in another file
        return [cache.sha256(path, beat) for path in _files(case)] == known
    except (OSError, DamagedFile):
        return False  # the check names the file and the reason


def _check_tables(case: str, entry: Mapping[str, Any], tables: Tables) -> list[Fault]:
    """Check an unchanged case against channels and labels, since these may be declared differently now."""
    faults = []
    if channels_of(entry) != tables.channels:
        message = f"is registered with {channels_of(entry)} channels where channel_names has {tables.channels}; correct channel_names"
        faults.append(Fault(code=Code.CHANNEL_MISSING, case=case, message=message))
    unknown = sorted(set(entry["values"]) - tables.values)
    if unknown:
        message = f"its label has the values {unknown[:10]} that are not declared ({sorted(tables.values)}); correct label_names"
        faults.append(Fault(code=Code.LABEL_UNDECLARED, case=case, message=message))
    return faults


def beat_or_stop(context: StepContext) -> Callable[[], None]:
    """Return a function for long reads to call: it raises when the job is to stop, and otherwise reports that the step is alive."""

    def beat() -> None:
        context.check_stop()
        context.beat()

    return beat


def parallel(context: StepContext, phase: str, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Compute results, in the order of the items, by as many threads as the job has cores.

    Threads suffice for hashing and copying, which release the interpreter lock. Files are parsed in processes: see workers.
    """
    work: Sequence[Item] = list(items)
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, min(context.cpus, _THREADS))) as pool:
        futures = [pool.submit(function, item) for item in work]
        try:
            reported = 0.0
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                future.result()
                context.check_stop()
                if done == len(futures) or time.monotonic() - reported > _REPORT_S:
                    context.progress(phase, done, len(futures))
                    reported = time.monotonic()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]
