"""Keeps ``manifest.json``, which records what is registered by content, and a cache of file hashes, so unchanged files are not read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import content_hash, read_json, write_json
from nnunet_jobs.dataset.holdout import HOLDOUT, TEST, TRAIN
from nnunet_jobs.dataset.labels import Tables
from nnunet_jobs.dataset.readers.volume import hash_file

log = logging.getLogger("nnunet_jobs")
SCHEMA = 1
HISTORY_IDS = 200  # case ids that one line of history lists of each kind; the counts are always whole
_RACY_NS = 2_000_000_000  # a change this soon after a hash may share its time stamp; such a signature is not trusted


def build_manifest(
    *,
    dataset: str,
    dataset_id: int,
    tables: Tables,
    file_ending: str,
    holdout: Mapping[str, Any],
    cases: Mapping[str, Mapping[str, Any]],
    previous: Mapping[str, Any] | None,
    counts: Mapping[str, int],
    by: Mapping[str, str] | None = None,
    withdrawn: Collection[str] = (),
    reason: str | None = None,
    own_splits: str | None = None,
) -> dict[str, Any]:
    """Build ``manifest.json``: cases by id with hashes, patient, split and geometry, and the history of the dataset.

    ``hash`` covers tables, ending and all cases; ``training_hash`` only the training cases. A line of history is added when the
    content or a setting differs from ``previous``: when (``at``), who (``by``), the counts, ids of the cases (the first
    :data:`HISTORY_IDS` of each kind), settings before and after, and the content hash before (``previous``) and after (``hash``).

    Args:
        by: Result of :func:`nnunet_jobs.context.acting`.
        withdrawn: Cases that were removed because consent was withdrawn.
        reason: Reason of the withdrawal.
        own_splits: Hash of the splits that came with the source.
    """
    manifest = {
        "schema": SCHEMA,
        "dataset": dataset,
        "dataset_id": dataset_id,
        "hash": _hash(tables, file_ending, cases.items()),
        "training_hash": _hash(tables, file_ending, ((c, v) for c, v in cases.items() if v["split"] == TRAIN)),
        "file_ending": file_ending,
        **tables.to_json(),
        "holdout": dict(holdout),
        **({"own_splits": own_splits} if own_splits is not None else {}),
        "history": list(previous["history"]) if previous else [],
        "cases": {case: dict(cases[case]) for case in sorted(cases)},
    }
    settings = _changed_settings(previous, manifest)
    if not previous or previous["hash"] != manifest["hash"] or settings:
        line = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "hash": manifest["hash"],
            "previous": previous["hash"] if previous else None,
            "by": dict(by or {}),
            **counts,
            "cases": _difference(previous["cases"] if previous else {}, manifest["cases"], withdrawn),
        }
        manifest["history"].append(line | ({"settings": settings} if settings else {}) | ({"reason": reason} if reason else {}))
    return manifest


def _changed_settings(previous: Mapping[str, Any] | None, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings, which are everything except content, that changed."""
    if previous is None:
        return {}
    names = [name for name in manifest if name not in ("hash", "training_hash", "history", "cases", "schema")]
    return {name: {"before": previous.get(name), "after": manifest[name]} for name in names if previous.get(name) != manifest[name]}


def _difference(before: Mapping[str, Any], after: Mapping[str, Any], withdrawn: Collection[str]) -> dict[str, list[str]]:
    """Return case ids by what changed; ``moved`` have another patient or split, and the same images and label."""

    def differs(case: str, *fields: str) -> bool:
        return any(before[case][name] != after[case][name] for name in fields)

    both = sorted(set(before) & set(after))
    found = {
        "added": sorted(set(after) - set(before)),
        "changed": [case for case in both if differs(case, "images", "label")],
        "moved": [case for case in both if differs(case, "group", "split") and not differs(case, "images", "label")],
        "removed": sorted(set(before) - set(after) - set(withdrawn)),
        "withdrawn": sorted(withdrawn),
    }
    return {what: cases[:HISTORY_IDS] for what, cases in found.items() if cases}


def _hash(tables: Tables, file_ending: str, cases: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    keys = ("images", "label", "group", "split")
    content = {
        case: {key: entry[key] for key in (*keys, *(("spacing",) if sidecars_of(case, entry, file_ending) else ()))}
        for case, entry in cases
    }
    return content_hash({**tables.to_json(), "labels": list(tables.labels.items()), "file_ending": file_ending, "cases": content})


def description(manifest: Mapping[str, Any], extras: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``dataset.json`` in nnU-Net's form. It counts the training cases only."""
    data: dict[str, Any] = {
        "channel_names": manifest["channel_names"],
        "labels": manifest["labels"],
        "numTraining": sum(entry["split"] == TRAIN for entry in manifest["cases"].values()),
        "file_ending": manifest["file_ending"],
        "name": manifest["dataset"],
        **extras,
    }
    if manifest["regions_class_order"] is not None:
        data["regions_class_order"] = manifest["regions_class_order"]
    return data


def files_of(case: str, entry: Mapping[str, Any], file_ending: str) -> dict[str, str]:
    """Return a registered case's files: path below the dataset's folder to sha256."""
    images, labels = ("imagesTr", "labelsTr") if entry["split"] == TRAIN else ("imagesTs", "labelsTs")
    files = {f"{images}/{case}_{channel:04d}{file_ending}": sha256 for channel, sha256 in enumerate(entry["images"])}
    if entry["label"] is not None:
        files[f"{labels}/{case}{file_ending}"] = entry["label"]
    sidecars = sidecars_of(case, entry, file_ending)
    return files | {name: hashlib.sha256(content).hexdigest() for name, content in sidecars.items()}


def sidecars_of(case: str, entry: Mapping[str, Any], file_ending: str) -> dict[str, bytes]:
    """Return the spacing files that nnU-Net reads beside 3D TIFF files, which cannot hold a spacing: path to content."""
    if file_ending not in (".tif", ".tiff") or not entry.get("shape") or entry["shape"][2] == 1:
        return {}
    content = json.dumps({"spacing": [float(value) for value in reversed(entry["spacing"])]}).encode()
    images, labels = ("imagesTr", "labelsTr") if entry["split"] == TRAIN else ("imagesTs", "labelsTs")
    return {f"{folder}/{case}.json": content for folder in ((images, labels) if entry["label"] is not None else (images,))}


def channels_of(entry: Mapping[str, Any]) -> int:
    """Return a registered case's number of channels: one for each file, except for images with colours."""
    return int(entry.get("channels", len(entry["images"])))


def folders_of(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the folders of a dataset with these cases. Those for training are always included, since nnU-Net expects them."""
    splits = {entry["split"] for entry in cases}
    folders = ["imagesTr", "labelsTr"]
    if splits & {HOLDOUT, TEST}:
        folders.append("imagesTs")
    if HOLDOUT in splits:
        folders.append("labelsTs")
    return folders


class HashCache:
    """Caches the sha256 of files by path, valid while device, inode, size, mtime and ctime are unchanged.

    ctime is set by the kernel at each change of content or name and cannot be set back, so a changed file with an old mtime is
    noticed. A file that changed less than 2 s before it was hashed is hashed again next time. Thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: dict[str, list[Any]] = {}
        try:
            data = read_json(path)
            self._known: dict[str, list[Any]] = data["files"] if data["schema"] == SCHEMA else {}
        except (OSError, ValueError, KeyError, TypeError):  # only a cache: without it, files are hashed again
            self._known = {}

    def sha256(self, path: Path, beat: Callable[[], None]) -> str:
        """Return the hash of a file's present content; read the file only if its signature is new."""
        now, signature = time.time_ns(), signature_of(path)
        known = self._known.get(_key(path))
        if known and known[:5] == signature and max(signature[3], signature[4]) < known[5] - _RACY_NS:
            self._remember(path, known)
            return str(known[6])
        digest = hash_file(path, beat)
        self.learn(path, digest, signature, now)
        return digest

    def learn(self, path: Path, sha256: str, signature: list[int], at: int) -> None:
        """Remember a hash from elsewhere, by a read that began at ``at`` ns, when the file had this signature."""
        if signature_of(path) == signature:
            self._remember(path, [*signature, at, sha256])

    def forget(self, digests: Collection[str]) -> None:
        """Forget files with these hashes, which were withdrawn, and write the cache without them."""
        left = {path: record for path, record in self._known.items() if record[6] not in digests}
        if len(left) != len(self._known):
            self._known = left
            write_json(self.path, {"schema": SCHEMA, "files": left})

    def save(self) -> None:
        """Write what this run used; everything else is forgotten."""
        if self._seen != self._known or not self.path.exists():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, {"schema": SCHEMA, "files": self._seen})
            except OSError as error:
                log.warning("%s cannot be written (%s); the next run hashes all files again", self.path, error.strerror)

    def _remember(self, path: Path, record: list[Any]) -> None:
        with self._lock:
            self._seen[_key(path)] = record


def _key(path: Path) -> str:
    """Return a path's key in the cache: a hash, since file names may name patients and everybody may read the cache."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def signature_of(path: Path) -> list[int]:
    """Return device, inode, size, mtime and ctime of a file."""
    status = os.stat(path)
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
