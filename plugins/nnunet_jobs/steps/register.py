"""Registers a dataset: lists the source, checks every case, chooses the hold-out, and updates nnUNet_raw by one rename."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext, acting
from nnunet_jobs.contract.failure import ConfigError, DataError, DiskFull, Fault, Interrupted
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.steps.results import RegisterResult
from nnunet_jobs.contract.storage.files import content_hash, read_json
from nnunet_jobs.contract.storage.permissions import with_workspace_umask
from nnunet_jobs.contract.storage.withdrawals import Tombstones, images_withdrawn_elsewhere
from nnunet_jobs.contract.storage.workspace import DATASET_NAME, MANIFEST, dataset_name
from nnunet_jobs.dataset import holdout
from nnunet_jobs.dataset.case_splits import CaseSplits, expected_files
from nnunet_jobs.dataset.changes import Changes, beat_or_stop, compare, parallel, read_cases
from nnunet_jobs.dataset.labels import Tables
from nnunet_jobs.dataset.manifest import SCHEMA, HashCache, build_manifest, description
from nnunet_jobs.dataset.materialise import plain_source
from nnunet_jobs.dataset.own_splits import OWN_SPLITS, for_training, registered_splits
from nnunet_jobs.dataset.readers.formats import nnunet_reader
from nnunet_jobs.dataset.renaming import CaseNames
from nnunet_jobs.dataset.report_store import Reporter, SummaryStore
from nnunet_jobs.dataset.sources import Source, read_source
from nnunet_jobs.dataset.splits import Splits
from nnunet_jobs.dataset.staging import Store
from nnunet_jobs.dataset.transfer import recover
from nnunet_jobs.dataset.withdraw import leave_copies_out, leave_out, warn_of_incomplete
from nnunet_jobs.faults.codes import data_error

log = logging.getLogger("nnunet_jobs")


@with_workspace_umask
def run(params: RegisterParams, context: StepContext) -> dict[str, Any]:
    """Update ``nnUNet_raw/DatasetXXX_Name`` from the source. Nothing is written if there is a fault, or nothing is new.

    Returns:
        :class:`~nnunet_jobs.contract.steps.results.RegisterResult` as a JSON object. The report's page is in the job's folder after
        a DataError too.

    Raises:
        DataError: The source has faults; all of them are listed.
        ConfigError: A field is wrong, or the id is taken.
        DiskFull: There is no space left.
    """
    dataset = dataset_name(params.dataset_id, params.name)
    root = context.workspace.confine_input(params.source, field="source")
    raw = Path(context.workspace.raw)
    raw.mkdir(parents=True, exist_ok=True)
    with context.content_lock(raw / ".locks" / f"{params.dataset_id:03d}.lock", what=dataset):
        return _Registration(params=params, context=context, dataset=dataset, root=root).run()


class _Registration:
    """Runs one registration, under the lock of its dataset id."""

    def __init__(self, *, params: RegisterParams, context: StepContext, dataset: str, root: Path) -> None:
        self.params, self.context, self.dataset, self.root = params, context, dataset, root
        raw = Path(context.workspace.raw)
        self.folder = raw / dataset
        self.store = Store(folder=self.folder)
        self.cache = HashCache(raw / ".state" / f"{dataset}.json")
        self.summaries = SummaryStore(raw / ".state" / f"{dataset}.summaries.json")
        self.report = Reporter(dataset=dataset, job=context.job.path, store=self.summaries)
        self.stones = Tombstones(context.workspace, dataset)
        self.left_out: list[str] = []
        self.splits: Splits | None = None

    def run(self) -> dict[str, Any]:
        recover(self.folder)
        self._check_id()
        warn_of_incomplete(self.stones)
        try:
            with plain_source(self.params, self.root, self.context, dataset=self.dataset) as root:
                return self._register(root)
        except DataError as error:
            self.report.failed(error.faults)
            raise

    def _register(self, root: Path) -> dict[str, Any]:
        previous = self._previous()
        # an interrupted withdrawal has written its tombstones, so its cases are left out of the folder here
        registered = {case: entry for case, entry in (previous or {"cases": {}})["cases"].items() if case not in self.stones.cases}
        self.names = CaseNames(self.folder.parent / ".state" / f"{self.dataset}.names.csv", registered)
        staying = registered if self.params.on_removed == "keep" else {}
        source = read_source(self.params, root, known=staying, names=self.names, withdrawn=self.stones.cases)
        if self.root.is_relative_to(os.path.realpath(self.folder)):
            raise ConfigError(
                field="source", value=self.params.source, problem="is the dataset's own folder", fix="register from a folder outside of it"
            )
        self.case_splits = CaseSplits(params=self.params, source=source, registered=registered, withdrawn=self.stones.cases)
        self.left_out = leave_out(source, self.stones, lambda: self.case_splits.groups(list(source.cases)))
        ending: str = previous["file_ending"] if previous else source.file_ending()
        source.reader = nnunet_reader(ending, source.extras.get("overwrite_image_reader_writer"))
        changes = compare(self.params, self.context, source, registered, store=self.store, cache=self.cache, ending=ending)
        elsewhere = images_withdrawn_elsewhere(self.context.workspace, self.dataset)
        self.left_out += leave_copies_out(changes, source, registered, self.stones, elsewhere)
        self.report.checked(source.tables.to_json(), registered, changes.checked, changes.warnings)
        self._summarise(source, registered, changes)
        if self.left_out:
            log.info("%d cases of the source were withdrawn and stay out", len(self.left_out))
        if changes.faults:
            changes.faults += self.case_splits.group_faults([*source.cases, *changes.kept])
            raise data_error(changes.faults, what=f"{self.dataset} not registered")
        if previous:
            self._check_same_dataset(previous, source.tables, changes)
        cases = self.case_splits.entries(changes)
        self._take_splits(source, previous, cases)
        return self._write(source, previous, cases, ending, changes)

    def _take_splits(self, source: Source, previous: Mapping[str, Any] | None, cases: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the source's own splits for the training cases, or those of an earlier registration."""
        if source.splits is None:
            if previous and previous.get("own_splits"):
                training = {case for case, entry in cases.items() if entry["split"] == holdout.TRAIN}
                self.splits = registered_splits(self.folder, only=training)
            return
        self.splits, faults = for_training(source.splits, cases)
        if any(fault.severity == "error" for fault in faults):
            raise data_error(faults, what=f"{self.dataset} not registered")
        for fault in faults:
            log.warning("%s", fault)
        named = {case for fold in self.splits for side in fold.values() for case in side}
        unnamed = [case for case, entry in cases.items() if entry["split"] == holdout.TRAIN and case not in named]
        log.info("%d folds are the source's own (%s)", len(self.splits), OWN_SPLITS)
        if unnamed:
            log.warning(
                "%s names no fold for %d training cases; preprocessing distributes them: %s", OWN_SPLITS, len(unnamed), unnamed[:20]
            )

    def _summarise(self, source: Source, registered: Mapping[str, Any], changes: Changes) -> None:
        """Make missing summaries; unchanged cases are read only if the summary of their first check is missing."""
        lost = [source.cases[name] for name in sorted(changes.unchanged - set(changes.checked)) if not self.summaries.has(registered[name])]
        for checked in read_cases(self.params, self.context, source, lost, phase="summarise"):
            self.summaries.keep(checked)

    # --- what is there ------------------------------------------------------------------------------------------
    def _check_id(self) -> None:
        for entry in sorted(self.folder.parent.iterdir()):
            match = DATASET_NAME.fullmatch(entry.name)
            if match and int(match[1]) == self.params.dataset_id and entry.name != self.dataset:
                raise ConfigError(
                    field="dataset_id",
                    value=self.params.dataset_id,
                    problem=f"is taken by {entry.name}, so {self.dataset} cannot have it",
                    fix=f"choose another dataset_id, or the name {match[2]!r} if they are the same dataset",
                )

    def _previous(self) -> dict[str, Any] | None:
        if not self.folder.exists():
            return None
        path = self.folder / MANIFEST
        fix = f"move {self.folder} away and register from there, or choose another dataset_id"
        try:
            manifest: dict[str, Any] = read_json(path)
        except FileNotFoundError:
            raise ConfigError(
                field="name",
                value=self.params.name,
                problem=f"{self.dataset} is there but has no {MANIFEST}, so it was made by hand",
                fix=fix,
            ) from None
        except ValueError as error:
            raise ConfigError(field="name", value=self.params.name, problem=f"{path} is not readable ({error})", fix=fix) from error
        if manifest.get("schema") != SCHEMA:
            raise ConfigError(
                field="name",
                value=self.params.name,
                problem=f"{path} has schema {manifest.get('schema')!r}, this version knows {SCHEMA}",
                fix=fix,
            )
        return manifest

    def _check_same_dataset(self, previous: Mapping[str, Any], tables: Tables, changes: Changes) -> None:
        """Refuse another dataset under the same name, which would silently replace or mix the cases. A growing dataset is allowed."""
        registered = len(previous["cases"])
        replaced = registered >= 2 and len(changes.changed) == registered
        same_tables = all(previous[key] == value for key, value in tables.to_json().items())
        disjoint = not changes.changed and not changes.unchanged and not same_tables
        if replaced or disjoint:
            what = "every registered case has other content" if replaced else "no case is the same, and channels or labels differ"
            raise ConfigError(
                field="dataset_id",
                value=self.params.dataset_id,
                problem=f"{self.dataset} is taken by other content than {self.params.source} ({what})",
                fix=f"choose another dataset_id, or move {self.folder} away",
            )

    # --- writing ------------------------------------------------------------------------------------------------
    def _write(
        self, source: Source, previous: dict[str, Any] | None, cases: dict[str, dict[str, Any]], ending: str, changes: Changes
    ) -> dict[str, Any]:
        registered = previous["cases"] if previous else {}
        withdrawn = sorted(set(registered) & set(self.stones.cases))
        counts = {"added": len(changes.added), "changed": len(changes.changed), "removed": len(changes.removed)}
        settings = {"fraction": self.params.holdout_fraction, "cases": self.case_splits.asked()}

        # predictions of studies use the same rules, and refuse values of other units
        rules = {"series": self.params.series or {}, "units": source.units} if source.layout == "dicom" else {}

        def manifest() -> dict[str, Any]:
            return rules | build_manifest(
                dataset=self.dataset,
                dataset_id=self.params.dataset_id,
                tables=source.tables,
                file_ending=ending,
                holdout=settings,
                cases=cases,
                previous=previous,
                own_splits=content_hash(self.splits) if self.splits is not None else (previous or {}).get("own_splits"),
                counts={**counts, "withdrawn": len(withdrawn)},
                by=acting(self.context),
                withdrawn=withdrawn,
            )

        if previous:
            self.store.check_strays(registered, ending)
        self.names.save()
        nothing_new = previous and not changes.checked and not changes.removed and manifest() == previous
        same_files = _read(self.folder / "dataset.json") == description(previous, source.extras) if previous else False
        if previous and nothing_new and same_files and (self.splits is None or _read(self.folder / OWN_SPLITS) == self.splits):
            self.store.abandon()
            self.cache.save()
            return self._result(previous, counts, already_done=True)
        try:
            self.store.begin(expected_files(cases, changes, ending), cases)
            for case, entry in cases.items():
                if case not in changes.checked:
                    self.store.carry_over(case, registered[case], entry, ending)
            self._bring(source, cases, ending, changes)
            new = manifest()
            self.context.check_stop()
            self.store.commit(new, description(new, source.extras), splits=self.splits)
        except Interrupted:
            raise
        except BaseException as error:
            self.store.abandon()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(self.folder.parent).free >> 20
                raise DiskFull(
                    f"no space left in {self.folder.parent} ({free} MiB free); nothing was registered, make room and run again"
                ) from error
            raise
        self.store.damaged(cases, ending, self.cache, beat_or_stop(self.context))
        self.cache.save()
        return self._result(new, counts, already_done=False)

    def _bring(self, source: Source, cases: dict[str, dict[str, Any]], ending: str, changes: Changes) -> None:
        def bring(case: str) -> list[Fault]:
            images, label, faults = self.store.bring(
                changes.checked[case], cases[case]["split"], ending, method=self.params.transfer, beat=beat_or_stop(self.context)
            )
            cases[case].update(images=images, label=label)
            return faults

        faults = [fault for found in parallel(self.context, "copy", bring, sorted(changes.checked)) for fault in found]
        if faults:
            raise data_error(faults, what=f"{self.dataset} not registered")

    def _result(self, manifest: Mapping[str, Any], counts: Mapping[str, int], *, already_done: bool) -> dict[str, Any]:
        splits = [entry["split"] for entry in manifest["cases"].values()]
        return RegisterResult(
            dataset=manifest["dataset"],
            dataset_id=manifest["dataset_id"],
            hash=manifest["hash"],
            training_hash=manifest["training_hash"],
            train=splits.count(holdout.TRAIN),
            holdout=splits.count(holdout.HOLDOUT),
            test=splits.count(holdout.TEST),
            added=counts["added"],
            changed=counts["changed"],
            removed=counts["removed"],
            withdrawn=len(self.left_out),
            already_done=already_done,
            path=str(self.folder),
            report=self.report.succeeded(manifest["cases"]),
        ).to_json()


def _read(path: Path) -> Any:
    """Return a JSON file's content; None if it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
