"""How a source differs from what is registered: new, changed, unchanged and missing cases, with every fault of all of them."""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.params import RegisterParams
from nnunet_jobs.dataset.faults import Code
from nnunet_jobs.dataset.holdout import TEST
from nnunet_jobs.dataset.labels import Tables
from nnunet_jobs.dataset.manifest import HashCache, signature_of
from nnunet_jobs.dataset.sources import Source, SourceCase
from nnunet_jobs.dataset.staging import Store
from nnunet_jobs.dataset.validate import CheckedCase, check_case

log = logging.getLogger("nnunet_jobs")
Item = TypeVar("Item")
Result = TypeVar("Result")
_REPORT_S = 0.5
_THREADS = 16


@dataclass(slots=True, kw_only=True)
class Changes:
    """Case ids by what became of them.

    Attributes:
        checked: cases to be brought, with what their check found: all that are added, changed or damaged.
        added, changed, unchanged: of the source. kept: registered, no longer in the source, to stay. removed: to go.
        damaged: registered files are missing or not what the manifest says; brought again.
        faults: all that forbid the registration.
    """

    checked: dict[str, CheckedCase] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    unchanged: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)


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
    """Check new and changed cases, recognise unchanged ones by content, and look whether registered files are still sound.

    Args:
        params, context: of the step. source: as listed. registered: the manifest's cases. store: the dataset's folder.
        cache: of file hashes. ending: of the registered files.
    """
    beat = pulse(context)

    def examine(case: SourceCase) -> CheckedCase | None:
        return _examine(case, source, registered.get(case.case), cache, params.spacing_tolerance, beat)

    changes = Changes(faults=list(source.faults))
    examined = parallel(context, "validate", examine, source.cases.values())
    for case, checked in zip(source.cases.values(), examined, strict=True):
        if checked is None:
            changes.unchanged.add(case.case)
        else:
            (changes.changed if case.case in registered else changes.added).add(case.case)
            changes.checked[case.case] = checked
            changes.faults += checked.errors
            for fault in checked.faults:
                if fault.severity == "warning":
                    log.warning("%s", fault)
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
    for name in sorted(changes.damaged & changes.unchanged):
        log.warning("%s: registered files are missing or damaged and are brought from the source again", name)
        changes.checked[name] = check_case(source.cases[name], source, tolerance=params.spacing_tolerance, beat=beat)
        changes.faults += changes.checked[name].errors
    return changes


def _apply_policies(params: RegisterParams, changes: Changes, gone: set[str]) -> None:
    if params.on_removed == "fail":
        message = "is registered but no longer in the source; bring it back, or set on_removed to keep or drop"
        changes.faults += [Fault(code=Code.CASE_REMOVED, case=name, message=message) for name in sorted(gone)]
    if params.on_changed == "fail":
        message = "is registered with other content; restore it in the source, or set on_changed to update"
        changes.faults += [Fault(code=Code.CASE_CHANGED, case=name, message=message) for name in sorted(changes.changed)]


def _examine(
    case: SourceCase, source: Source, entry: Mapping[str, Any] | None, cache: HashCache, tolerance: float, beat: Callable[[], None]
) -> CheckedCase | None:
    """None when the case is registered with just this content, else the checked case."""
    files = [*case.images, *([case.label] if case.label else [])]
    try:
        if entry and (entry["split"] != TEST) == case.labelled and len(entry["images"]) == source.tables.channels:
            known = [*entry["source"]["images"], *([entry["source"]["label"]] if entry["source"]["label"] else [])]
            if [cache.sha256(path, beat) for path in files] == known:
                return None
        signatures = [signature_of(path) for path in files]
    except OSError:
        signatures = []  # the check names the file and the reason
    now = time.time_ns()
    checked = check_case(case, source, tolerance=tolerance, beat=beat)
    hashes = [*checked.hashes, *([checked.label_hash] if checked.label_hash else [])]
    if not checked.errors:
        for path, signature, sha256 in zip(files, signatures, hashes, strict=False):
            cache.learn(path, sha256, signature, now)
    return checked


def _check_tables(case: str, entry: Mapping[str, Any], tables: Tables) -> list[Fault]:
    """Channels and labels may be declared anew although the images stay."""
    faults = []
    if len(entry["images"]) != tables.channels:
        message = f"is registered with {len(entry['images'])} channels where channel_names has {tables.channels}; correct channel_names"
        faults.append(Fault(code=Code.CHANNEL_MISSING, case=case, message=message))
    unknown = sorted(set(entry["values"]) - tables.values)
    if unknown:
        message = f"its label has the values {unknown[:10]} that are not declared ({sorted(tables.values)}); correct label_names"
        faults.append(Fault(code=Code.LABEL_UNDECLARED, case=case, message=message))
    return faults


def pulse(context: StepContext) -> Callable[[], None]:
    """What long reads call now and then: raises when the job is to stop, else shows a sign of life."""

    def beat() -> None:
        context.check_stop()
        context.beat()

    return beat


def parallel(context: StepContext, phase: str, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results in the order of the items, computed by as many threads as the job has cores.

    Threads do: inflating, hashing and NumPy all release the interpreter lock.
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
