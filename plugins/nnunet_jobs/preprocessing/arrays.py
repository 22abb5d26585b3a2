"""Makes a version's arrays and ground truth: links them by content from an older version, or computes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.preprocessing import planning
from nnunet_jobs.preprocessing.cases import MemoryGate, ReadCache, TrainingCase, preprocess_case, run_all
from nnunet_jobs.preprocessing.version import CASE_SUFFIXES, Staging, Version, file_matches, record_file

Name = TypeVar("Name")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The inputs of a version.

    Attributes:
        dataset: Full name of the dataset.
        raw: Folder of the dataset in nnUNet_raw.
        manifest: Manifest from that folder.
        dataset_json: ``dataset.json`` from that folder.
        cases: Training cases, sorted.
        published: Old versions, the current one first.
        request: Settings that determine the version.
    """

    dataset: str
    raw: Path
    manifest: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    cases: list[TrainingCase]
    published: list[Version]
    request: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A finished case in an older version: its files begin with ``prefix``; ``hashed``: verify all of their bytes."""

    version: Version
    hashed: bool
    prefix: str


class BuildPart:
    """Base of the classes that do the parts of a build: inputs, threads, memory, heartbeats."""

    def __init__(
        self,
        inputs: Inputs,
        context: StepContext,
        staging: Staging,
        pool: ThreadPoolExecutor,
        *,
        reads: ReadCache,
        gate: MemoryGate,
        preprocessors: Future[Any],
    ) -> None:
        self.inputs, self.context, self.staging, self.pool = inputs, context, staging, pool
        self.reads, self.gate, self.preprocessors = reads, gate, preprocessors

    def between(self) -> None:
        """Report a heartbeat between two pieces of work, and raise if the job is to stop."""
        self.context.beat()
        self.context.check_stop()

    def report(self, phase: str, done: int, total: int) -> None:
        """Report progress, in about twenty lines for each phase with any number of cases."""
        if done == total or done % max(1, total // 20) == 0:
            self.context.progress(phase, done, total)


class Arrays(BuildPart):
    """Makes arrays and ground truth of one version."""

    def link_or_compute(self, plans: dict[str, Any], wanted: list[str]) -> tuple[dict[str, dict[str, str]], int, int]:
        """Link or compute the cases of every data identifier. Returns (identifier to case to key, computed, linked)."""
        owners = {resolved["data_identifier"]: "" for resolved in (planning.resolve(plans, name) for name in wanted)}
        for identifier in owners:  # several configurations may share arrays; the one that names them determines their chunks
            owners[identifier] = next(
                name for name, entry in plans["configurations"].items() if entry.get("data_identifier") == identifier
            )  # fmt: skip
        dataset_json = self.inputs.dataset_json
        hashes = {identifier: planning.data_hash(plans, owner, dataset_json) for identifier, owner in owners.items()}
        keys = {identifier: {case.name: case.key(data) for case in self.inputs.cases} for identifier, data in hashes.items()}
        for identifier in owners:
            (self.staging.root / identifier).mkdir()
        sources = self._sources()

        def link(identifier: str, case: TrainingCase) -> bool:
            key = keys[identifier][case.name]
            return any(self._link(source, identifier, case, key) for source in sources.get(key, ()))

        linking = [named((identifier, case), partial(link, identifier, case)) for identifier in owners for case in self.inputs.cases]
        todo: dict[TrainingCase, list[str]] = {}
        linked = 0
        for (identifier, case), done in run_all(self.pool, linking, between=self.between):
            linked += done
            if not done:
                todo.setdefault(case, []).append(identifier)
        self.staging.drop_abandoned()
        if linked:
            self.context.progress("link", linked, len(linking))
        computed = self._compute(plans, owners, keys, todo) if todo else 0
        return keys, computed, linked

    def _sources(self) -> dict[str, list[_Source]]:
        """Map case keys to existing arrays."""
        sources: dict[str, list[_Source]] = {}
        for version in (*self.staging.abandoned(), *self.inputs.published):
            hashed = version.hashed
            for identifier, cases in version.record["cases"].items():
                for case, key in cases.items():
                    sources.setdefault(key, []).append(_Source(version=version, hashed=hashed, prefix=f"{identifier}/{case}"))
        return sources

    def _link(self, source: _Source, identifier: str, case: TrainingCase, key: str) -> bool:
        version = source.version
        paths = {suffix: f"{source.prefix}{suffix}" for suffix in CASE_SUFFIXES}
        whole = all(
            path in version.files and file_matches(version.root / path, version.files[path], hashed=source.hashed)
            for path in paths.values()
        )  # fmt: skip
        if whole:
            files = {f"{identifier}/{case.name}{suffix}": version.files[path] for suffix, path in paths.items()}
            for suffix, path in paths.items():
                self.staging.link(version.root / path, f"{identifier}/{case.name}{suffix}")
            self.staging.note_case(identifier, case.name, key, files)
        return whole

    def _compute(
        self,
        plans: dict[str, Any],
        owners: Mapping[str, str],
        keys: Mapping[str, Mapping[str, str]],
        todo: Mapping[TrainingCase, list[str]],
    ) -> int:
        self.preprocessors.result()
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(plans)
        managers = {identifier: manager.get_configuration(owner) for identifier, owner in owners.items()}
        dataset_json = dict(self.inputs.dataset_json)

        def compute(case: TrainingCase, identifiers: list[str]) -> int:
            size = max(case.working_bytes(managers[identifier].spacing) for identifier in identifiers)
            with self.gate.room(size):
                held = self.reads.read(case, keep=False)
                for identifier in identifiers:
                    files = preprocess_case(
                        case,
                        held,
                        plans_manager=manager,
                        configuration_manager=managers[identifier],
                        dataset_json=dataset_json,
                        folder=self.staging.root / identifier,
                    )
                    records = {f"{identifier}/{name}": record for name, record in files.items()}
                    self.staging.note_case(identifier, case.name, keys[identifier][case.name], records)
                    if self.context.stop.is_set():
                        break
            self.reads.forget(case)
            return len(identifiers)

        work = [partial(compute, case, identifiers) for case, identifiers in todo.items()]
        computed = 0
        for done, count in enumerate(run_all(self.pool, work, between=self.between), start=1):
            computed += count
            self.report("preprocess", done, len(work))
        self.context.check_stop()
        return computed

    def ground_truth(self) -> None:
        """Make ``gt_segmentations``: link by content from an old version, else copy the raw labels and check them."""
        ending = self.inputs.manifest["file_ending"]
        known = {
            digest: (version, f"gt_segmentations/{case}{version.record['basis']['file_ending']}")
            for version in reversed(self.inputs.published)
            for case, digest in version.record["labels"].items()
        }
        (self.staging.root / "gt_segmentations").mkdir()
        for case in self.inputs.cases:
            name, digest = f"gt_segmentations/{case.name}{ending}", case.hashes[-1]
            target = self.staging.root / name
            version, path = known.get(digest, (None, ""))
            if version is not None and path in version.files and file_matches(version.root / path, version.files[path], hashed=True):
                self.staging.link(version.root / path, name)
                self.staging.files[name] = version.files[path]
                continue
            shutil.copyfile(case.label, target)
            self.staging.files[name] = record_file(target)
            if self.staging.files[name][2] != digest:
                raise DataError(f"{case.label.name}: changed since it was registered; run RegisterDatasetOperator again")
            self.between()


def named(name: Name, work: Callable[[], Result]) -> Callable[[], tuple[Name, Result]]:
    """Wrap work so that its result has a name."""
    return lambda: (name, work())
