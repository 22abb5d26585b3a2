"""Removes the arrays of withdrawn cases from every preprocessed version, and records this in each version.

A version that lost cases is never used as finished again and never trained on. The next version continues from its splits and plans,
so that the other validation cases stay in their folds, and links its other cases' arrays, verified by content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from nnunet_jobs.contract.steps.withdrawal import VersionLoss
from nnunet_jobs.contract.storage.files import write_atomic, write_json
from nnunet_jobs.contract.storage.workspace import VERSIONS, Workspace
from nnunet_jobs.preprocessing import planning
from nnunet_jobs.preprocessing.cases import TrainingCase, training_cases
from nnunet_jobs.preprocessing.fingerprint import FingerprintCache
from nnunet_jobs.preprocessing.version import JOURNAL, RECORD, Version, published

log = logging.getLogger(__name__)
_SPLITS = "splits_final.json"
# Files of a case in a version, and those that older nnU-Net releases unpacked beside them.
_SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl", ".npz", ".npy", "_seg.npy")


def look(workspace: Workspace, dataset: str, cases: Collection[str]) -> list[VersionLoss]:
    """Return what each version would lose, or has already lost, of these cases."""
    found = []
    for version in published(workspace, dataset):
        folds = _folds(version, cases)
        if folds:
            found.append(VersionLoss(version=version.name, cases=folds, files=len(list(_files_of(version.root, cases, _ending(version))))))
    return found


def take_out(workspace: Workspace, dataset: str, cases: Collection[str], *, at: str) -> list[VersionLoss]:
    """Remove the cases from all versions, files of killed attempts, and fingerprints. The caller holds the lock.

    Each version's record is rewritten first and its files are removed afterwards, so that readers in between see a version that
    lost cases. If it is interrupted and called again, it completes.
    """
    lost = look(workspace, dataset, cases)
    for version in published(workspace, dataset):
        _take_out(version, cases, at=at)
    for staging in (Path(workspace.preprocessed) / VERSIONS).glob(f".staging-{dataset}-*"):
        for path in _files_of(staging, cases, _manifest_ending(workspace, dataset)):
            path.unlink(missing_ok=True)
        _clean_journal(staging / JOURNAL, cases)
    _forget_fingerprints(workspace, dataset)
    return lost


def _ending(version: Version) -> str:
    return str(version.record["basis"]["file_ending"])


def _manifest_ending(workspace: Workspace, dataset: str) -> str:
    return str(workspace.manifest(dataset)["file_ending"])


def _folds(version: Version, cases: Collection[str]) -> dict[str, dict[str, list[int]]]:
    """Return the folds of each case that the version has or had, from the splits or, after a withdrawal, from the record."""
    noted = version.record.get("withdrawn", {})
    splits = version.json(_SPLITS)
    known = {case for arrays in version.record["cases"].values() for case in arrays} | set(version.record["labels"])
    found = {}
    for case in sorted(cases):
        if case in noted:
            found[case] = {part: list(noted[case][part]) for part in ("train", "val")}
        elif case in known:
            found[case] = {part: [fold for fold, split in enumerate(splits) if case in split[part]] for part in ("train", "val")}
    return found


def _files_of(root: Path, cases: Collection[str], ending: str) -> Iterator[Path]:
    """Yield all files of the cases below a folder, by exact name: ``case1`` is not ``case10``."""
    names = {f"{case}{suffix}" for case in cases for suffix in (*_SUFFIXES, ending)}
    for folder, _, files in os.walk(root):
        yield from (Path(folder, name) for name in files if name in names)


def _take_out(version: Version, cases: Collection[str], *, at: str) -> None:
    folds = _folds(version, cases)
    if not folds:
        return
    splits = [{part: [case for case in split[part] if case not in folds] for part in ("train", "val")} for split in version.json(_SPLITS)]
    text = json.dumps(splits, indent=4, sort_keys=True).encode()
    doomed = list(_files_of(version.root, folds, _ending(version)))
    names = {str(path.relative_to(version.root)) for path in doomed}
    record = dict(version.record)
    noted = record.get("withdrawn", {})
    record["withdrawn"] = noted | {case: {"at": at, **where} for case, where in folds.items() if case not in noted}
    record["cases"] = {kind: {case: key for case, key in arrays.items() if case not in folds} for kind, arrays in record["cases"].items()}
    record["labels"] = {case: digest for case, digest in record["labels"].items() if case not in folds}
    record["files"] = {name: entry for name, entry in record["files"].items() if name not in names}
    # no modification time, so that the splits are verified by their bytes
    record["files"][_SPLITS] = [len(text), 0, hashlib.sha256(text).hexdigest()]
    if record != version.record:
        write_json(version.root / RECORD, record)
    if (version.root / _SPLITS).read_bytes() != text:
        write_atomic(version.root / _SPLITS, text)
    for path in doomed:
        path.unlink(missing_ok=True)
    log.info("version %s: %d files of %d cases removed", version.name, len(doomed), len(folds))


def _clean_journal(path: Path, cases: Collection[str]) -> None:
    with contextlib.suppress(FileNotFoundError):
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line may be cut
                if json.loads(line)["case"] not in cases:
                    kept.append(line)
        write_atomic(path, "".join(kept).encode())


def _forget_fingerprints(workspace: Workspace, dataset: str) -> None:
    """Keep only fingerprints of registered training cases, since names of the others do not show their case."""
    folder = Path(workspace.preprocessed) / ".fingerprints" / dataset
    if not folder.is_dir():
        return
    manifest = workspace.manifest(dataset)
    trained = any(entry["split"] == "train" for entry in manifest["cases"].values())
    cases: list[TrainingCase] = training_cases(workspace.raw_dataset(dataset), manifest) if trained else []
    readers = {str(version.plans()["image_reader_writer"]) for version in published(workspace, dataset)}
    keys = {f"{case.name} {reader}": case.key("fingerprint", reader, planning.nnunet_version()) for case in cases for reader in readers}
    FingerprintCache(folder).keep_only(keys)
