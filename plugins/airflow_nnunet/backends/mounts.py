"""Defines the folders of the workspace that a step's container sees: only those it uses, writable only if it writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nnunet_jobs.contract.job.spec import JobSpec


class Mode(StrEnum):
    """Names how a job sees a folder. With ``HIDDEN`` it sees an empty folder."""

    WRITABLE = "rw"
    READ_ONLY = "ro"
    HIDDEN = "hidden"


_RW, _RO, _HIDDEN = Mode.WRITABLE, Mode.READ_ONLY, Mode.HIDDEN
# Locks are in the root that they protect. Only steps that read DICOM see the identities of cases (``private``, in raw).
_FOLDERS: dict[str, dict[str, Mode]] = {
    "register": {"raw": _RW, "input_roots": _RO, "output_roots": _RO},
    "preprocess": {"raw": _RO, "private": _HIDDEN, "preprocessed": _RW},
    "train": {"raw": _RO, "private": _HIDDEN, "preprocessed": _RO, "results": _RW, "input_roots": _RO, "trainer_paths": _RO},
    "find_best_config": {"raw": _RO, "private": _HIDDEN, "preprocessed": _RO, "results": _RW, "trainer_paths": _RO},
    "predict": {"raw": _RO, "private": _RW, "results": _RO, "input_roots": _RO, "output_roots": _RW, "trainer_paths": _RO},
}
_LISTS = ("input_roots", "output_roots", "trainer_paths")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Describes a folder that a job sees under its path outside. ``field`` is the workspace's name for it."""

    path: str
    mode: Mode
    field: str


def mounts_for(spec: JobSpec) -> tuple[Mount, ...]:
    """Return the folders that a job sees, outer folders first: its own job folder, and those that its step uses.

    The lease ledger is not included, because each backend adds it itself. No folder appears twice. A folder inside
    another one appears only if the job sees it in another way. Folders of users that do not exist are left out.
    """
    wanted = [Mount(path=str(Path(spec.workspace.jobs) / spec.job_id), mode=_RW, field="jobs")]
    for field, mode in _FOLDERS[spec.step].items():
        wanted += [Mount(path=path, mode=mode, field=field) for path in _paths(spec, field, mode)]
    # A folder that is named twice gets the most permissive mode, unless it must be hidden.
    order = {_HIDDEN: 0, _RW: 1, _RO: 2}
    kept: list[Mount] = []
    for mount in sorted(wanted, key=lambda mount: (len(Path(mount.path).parts), mount.path, order[mount.mode])):
        over = [other for other in kept if Path(mount.path).is_relative_to(other.path)]
        if not over or (mount.path != over[-1].path and mount.mode is not over[-1].mode):
            kept.append(mount)
    return tuple(kept)


def _paths(spec: JobSpec, field: str, mode: Mode) -> Iterator[str]:
    value = getattr(spec.workspace, field)
    for path in value if field in _LISTS else [str(value)]:
        own = field not in _LISTS and mode is not _HIDDEN
        if own or mode is _RW or os.path.isdir(path):
            yield path
