"""Keeps withdrawn cases out of registrations, and removes them from the dataset's folder in nnUNet_raw and its hidden state."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.storage.files import locked, read_json, sha256_file, temporary_beside
from nnunet_jobs.contract.storage.permissions import explain_permission_error
from nnunet_jobs.contract.storage.withdrawals import Tombstones
from nnunet_jobs.contract.storage.workspace import Workspace, dataset_name
from nnunet_jobs.dataset.changes import Changes
from nnunet_jobs.dataset.holdout import TRAIN
from nnunet_jobs.dataset.labels import Tables
from nnunet_jobs.dataset.manifest import HashCache, build_manifest, files_of
from nnunet_jobs.dataset.own_splits import registered_splits
from nnunet_jobs.dataset.sources import Source
from nnunet_jobs.dataset.staging import Store
from nnunet_jobs.faults.codes import Code

log = logging.getLogger("nnunet_jobs")


# --- registration -----------------------------------------------------------------------------------------------------
def leave_out(source: Source, stones: Tombstones, groups: Callable[[], Mapping[str, str]]) -> list[str]:
    """Remove withdrawn cases, and all cases of withdrawn groups, from a listed source. Returns their ids.

    Args:
        groups: Patient of each case of the source; asked for only where a group was withdrawn.
    """
    gone = set(source.cases) & set(stones.cases)
    if stones.groups:
        gone |= {case for case, group in groups().items() if case in source.cases and stones.group_key(group) in stones.groups}
    _drop(source, gone)
    return sorted(gone)


def leave_copies_out(
    changes: Changes, source: Source, registered: Mapping[str, Any], stones: Tombstones, elsewhere: Mapping[str, str]
) -> list[str]:
    """Remove new cases with the image of a withdrawn case under another name. Returns their ids; each gets a warning.

    A registered case that would change into a withdrawn one is a fault. An image withdrawn from another dataset is only a
    warning, since consent is often given for one study.

    Args:
        changes: The changes that were found; faults are added to it.
        elsewhere: Maps an image's sha256 to the other dataset that it was withdrawn from.
    """
    withdrawn, copies, became = stones.images, [], []
    for case, checked in changes.checked.items():
        if not withdrawn.isdisjoint(checked.hashes):
            if case in registered:
                message = "now has the image of a withdrawn case; restore the source, or withdraw this case too"
                changes.faults.append(Fault(code=Code.WITHDRAWN, case=case, message=message))
                became.append(case)
            else:
                copies.append(case)
        elif other := next((elsewhere[digest] for digest in checked.hashes if digest in elsewhere), None):
            message = f"has the image of a case that was withdrawn from {other}; withdraw it here too if consent was for both"
            log.warning("%s", Fault(code=Code.WITHDRAWN, case=case, message=message, severity="warning"))
    for case in copies:
        message = "has the image of a withdrawn case under another name and is left out; remove it from the source"
        log.warning("%s", Fault(code=Code.WITHDRAWN, case=case, message=message, severity="warning"))
    for case in (*copies, *became):  # no report may show what the check saw of a withdrawn image
        del changes.checked[case]
    changes.added -= set(copies)
    changes.faults = [fault for fault in changes.faults if fault.case not in copies]
    changes.warnings = [fault for fault in changes.warnings if fault.case not in copies]
    _drop(source, copies)
    return copies


def warn_of_incomplete(stones: Tombstones) -> None:
    """Warn of a withdrawal that was interrupted: versions or models may still hold its cases."""
    cases = stones.incomplete()
    if cases:
        log.warning(
            "the withdrawal of %d cases of %s did not complete; run withdraw again for: %s", len(cases), stones.dataset, ", ".join(cases)
        )


def _drop(source: Source, cases: Collection[str]) -> None:
    for case in cases:
        gone = source.cases.pop(case)
        source.left_out.update((*gone.images, *([gone.label] if gone.label else [])))
    source.faults = [fault for fault in source.faults if fault.case is None or fault.case not in cases]


# --- withdrawal -------------------------------------------------------------------------------------------------------
def file_sizes(folder: Path, case: str, entry: Mapping[str, Any], ending: str) -> tuple[dict[str, int], dict[str, int]]:
    """Map sha256 to size in bytes for a registered case's images, and for its label; different source files are included with 0."""
    source = entry.get("source", {})
    images, labels = dict.fromkeys(source.get("images", ()), 0), {source["label"]: 0} if source.get("label") else {}
    for name, digest in files_of(case, entry, ending).items():
        path = folder / name
        (labels if name.startswith("labels") else images)[digest] = path.stat().st_size if path.is_file() else 0
    return images, labels


def take_out(store: Store, manifest: Mapping[str, Any], cases: Collection[str], *, by: Mapping[str, str], reason: str | None) -> None:
    """Remove the cases from the dataset's folder by one rename. The caller holds the registration lock.

    Files of a killed registration are removed too, since they may belong to the cases. Missing files of remaining cases are
    logged and left to the next registration; a withdrawal does not wait for that.
    """
    store.abandon()
    gone = sorted(set(cases) & set(manifest["cases"]))
    if not gone:
        return
    ending = manifest["file_ending"]
    left = {case: entry for case, entry in manifest["cases"].items() if case not in cases}
    new = build_manifest(
        dataset=manifest["dataset"],
        dataset_id=manifest["dataset_id"],
        tables=Tables(**{name: manifest[name] for name in ("channel_names", "labels", "regions_class_order")}),
        file_ending=ending,
        holdout=manifest["holdout"],
        cases=left,
        previous=manifest,
        counts={"added": 0, "changed": 0, "removed": 0, "withdrawn": len(gone)},
        by=by,
        withdrawn=gone,
        reason=reason,
    )
    unknown = {name: value for name, value in manifest.items() if name not in new}  # a later version's fields stay
    store.begin({name for case, entry in left.items() for name in files_of(case, entry, ending)}, left)
    for case, entry in left.items():
        try:
            store.carry_over(case, entry, entry, ending)
        except FileNotFoundError:
            log.warning("%s: registered files are missing; the next registration brings them again", case)
    description = read_json(store.folder / "dataset.json")
    description["numTraining"] = sum(entry["split"] == TRAIN for entry in left.values())
    store.commit({**unknown, **new}, description, splits=registered_splits(store.folder, only=left))
    store.abandon()


def forget(workspace: Workspace, dataset: str, stones: Tombstones, cases: Collection[str], beat: Callable[[], None]) -> list[str]:
    """Remove the cases from what registration keeps: hashes, summaries, reports, converted DICOM series, identities of patients.

    Caches that do not say which case they hold are removed whole; the next registration makes them again.

    Returns:
        What could not be removed and a person must remove, each with the reason.
    """
    state = Path(workspace.raw) / ".state"
    sizes: dict[str, int] = {}
    for case in cases:
        sizes |= stones.cases[case]["images"] | stones.cases[case]["labels"]
    HashCache(state / f"{dataset}.json").forget(sizes)
    for path in state.glob(f"{dataset}.summaries*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    left = []
    for what in (
        partial(_forget_converted, state / "dicom", sizes, beat),
        partial(_forget_persons, Path(workspace.raw) / ".private", dataset, cases),
        partial(_forget_reports, Path(workspace.jobs), dataset, cases),
    ):
        try:
            what()
        except PermissionError as error:
            left.append(f"{explain_permission_error(error)}; then run this again, or run it as that user")
    return left


def _forget_converted(folder: Path, sizes: Mapping[str, int], beat: Callable[[], None]) -> None:
    """Remove files with the content of the cases, by hash. All files are hashed if one of the sizes is not known."""
    known = set(sizes.values())
    for path in _files(folder):
        if (0 in known or path.stat().st_size in known) and sha256_file(path) in sizes:
            path.unlink(missing_ok=True)
        beat()


def _forget_reports(jobs: Path, dataset: str, cases: Collection[str]) -> None:
    """Remove the reports of the dataset's registrations that name the cases, since they show slices of them.

    If a job folder no longer says what the job was, the title of the page names the dataset.
    """
    for path in jobs.glob("*/report.html"):
        page = path.read_text()
        try:
            params = read_json(path.parent / "spec.json")["params"]
            of_dataset = dataset_name(int(params["dataset_id"]), str(params["name"])) == dataset
        except FileNotFoundError:
            of_dataset = dataset in page
        if of_dataset and any(case in page for case in cases):
            path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder; raise for a folder that cannot be listed."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in names)


def _forget_persons(folder: Path, dataset: str, cases: Collection[str]) -> None:
    """Remove the lines that say which patient is behind an id, and the note of the last run's files."""
    path = folder / f"{dataset}.jsonl"
    if not path.exists():
        return
    with locked(folder / ".lock"):
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["case"] not in cases]
        if kept != lines:
            (folder / f"{dataset}.files.json").unlink(missing_ok=True)
            temporary = temporary_beside(path)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(fd, "w") as file:
                    file.writelines(kept)
                    file.flush()
                    os.fsync(fd)
                os.replace(temporary, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()


def copies_of(workspace: Workspace, digests: Collection[str], *, but: Mapping[str, Collection[str]]) -> list[dict[str, str]]:
    """Return registered cases of any dataset with the same images, as ``{"dataset", "case"}``.

    Args:
        but: Dataset to the cases that are withdrawn themselves.
    """
    found = []
    for name in workspace.datasets().values():
        with contextlib.suppress(Exception):  # a dataset made by hand has no manifest
            for case, entry in workspace.manifest(name)["cases"].items():
                hashes = {*entry["images"], *entry.get("source", {}).get("images", ())}
                if not hashes.isdisjoint(digests) and case not in but.get(name, ()):
                    found.append({"dataset": name, "case": case})
    return found
