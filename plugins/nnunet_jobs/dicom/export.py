"""Exports a de-identified copy of a tree of DICOM images, each in a separate process."""

from __future__ import annotations

import concurrent.futures
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import write_private
from nnunet_jobs.dicom.identity import Identity
from nnunet_jobs.dicom.model import Scan
from nnunet_jobs.dicom.series import walk
from nnunet_jobs.dicom.workers import dicom_workers
from nnunet_jobs.sandbox.workers import Broken, size_of

_FILE_S = 300.0
_FILE_MIB, _MIB_A_MIB = 4096, 8  # for any file, and for each MiB of it
NOTE = "deidentified.files.json"
"""File in the private folder that says which file each number in the last export's refusals means."""


@dataclass(slots=True, kw_only=True)
class Export:
    """Says what happened to a tree's files.

    Attributes:
        written: Number of images that were written.
        other: Number of files that are not DICOM.
        refused: Maps the number of a file to the reason why it is not exported.
    """

    written: int = 0
    other: int = 0
    refused: dict[int, str] = field(default_factory=dict)


def export(source: Path, out: Path, private: Path, *, threads: int = 1, beat: Callable[[], None] = lambda: None) -> Export:
    """De-identify every image below a folder; see :func:`nnunet_jobs.dicom.deidentify.deidentify` for the changes.

    Args:
        source: Folder with DICOM files.
        out: New or empty folder.
        private: Folder with the site's key, which makes ids and UIDs; :attr:`Workspace.private
            <nnunet_jobs.contract.storage.workspace.Workspace.private>` gives the ids of registered cases.
        threads: Number of files at the same time.
        beat: Called as a heartbeat; may raise to stop.

    Raises:
        ConfigError: A folder is missing, not empty, or inside the other one.
    """
    source, out = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    if not source.is_dir():
        raise ConfigError(field="IN", problem="no such folder")
    if out.is_relative_to(source) or source.is_relative_to(out):
        raise ConfigError(field="OUT", problem="must not be inside IN, nor around it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(field="OUT", problem="must be a new or an empty folder, so that nothing in it was there before")
    identity = Identity(private)
    out.mkdir(parents=True, exist_ok=True)
    found, done = Scan(), Export()
    files = list(enumerate(walk(source, found, beat), 1))
    done.refused.update(dict.fromkeys(found.files, "is, or comes after, a folder or link that cannot be followed"))

    def one(item: tuple[int, Path]) -> dict[str, str | None]:
        data = {"path": os.path.realpath(item[1]), "out": str(out), "private": str(private)}
        try:
            mib = size_of([item[1]]) >> 20
            memory_mib = _FILE_MIB + mib * _MIB_A_MIB
            return workers.call("deidentify", data, timeout_s=_FILE_S + mib, memory_mib=memory_mib, beat=beat)
        except Broken as broken:
            return {"refused": f"cannot be read: {broken}"}

    with dicom_workers(threads) as workers, concurrent.futures.ThreadPoolExecutor(max_workers=threads) as pool:
        for (number, path), answer in zip(files, pool.map(one, files), strict=True):
            if reason := answer.get("refused"):
                done.refused[number] = reason
                found.files[number] = path
            elif answer["written"]:
                done.written += 1
            else:
                done.other += 1
    names = {str(number): str(path) for number, path in sorted(found.files.items())}
    write_private(identity.folder / NOTE, (json.dumps(names, indent=1) + "\n").encode())
    return done
