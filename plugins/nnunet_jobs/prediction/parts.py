"""Divides cases among parts by voxels, not by number of files, with one plan for all parts of a run.

The plan of a run is a file beside the records, so that a retry gets the share that it had, even if cases have arrived meanwhile. A
case that arrives later goes to a part that has not read its share yet, or to the one that reads it now, since no other would see it.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import content_hash, locked, read_json, try_lock, write_json
from nnunet_jobs.dataset.readers.nifti import promised_voxels
from nnunet_jobs.prediction.cases import Case

KEPT_S = 14 * 86_400.0  # a run that is resumed later than this gets a new plan of the cases that exist then
_INTERVAL_S = 0.05
_LOCK = "plans.lock"


def case_voxels(case: Case) -> int:
    """Return the voxels of a case's first image by its NIfTI header; its bytes for other formats; 0 for what cannot be read.

    Only relative sizes matter, and a model reads files of one ending. Headers of other formats are not read here, since their
    readers may crash and run in a separate process.
    """
    if case.problem is not None or not case.images:
        return 0
    path = case.images[0]
    try:
        return promised_voxels(path) if path.name.endswith((".nii", ".nii.gz")) else path.stat().st_size
    except OSError:
        return 0


def balance(voxels: Mapping[str, int], *, parts: Collection[int], load: Mapping[int, int]) -> dict[str, int]:
    """Assign cases to parts: the largest first, each to the part with the least load. The result is at most a third above the optimum.

    Args:
        voxels: Voxels of each case.
        parts: Parts to choose from.
        load: Voxels that each part has already.
    """
    # a case costs something beyond its voxels, so that many unreadable ones (0) are spread as well
    queue = [(load.get(part, 0), part) for part in parts]
    heapq.heapify(queue)
    found = {}
    for case, size in sorted(voxels.items(), key=lambda item: (-item[1], item[0])):
        busy, part = queue[0]
        found[case] = part
        heapq.heapreplace(queue, (busy + size + 1, part))
    return found


class PartPlans:
    """Manages the plans of one output folder.

    Args:
        folder: Folder of the plans.
        part_lock: Returns the lock file that a part holds while it works.
    """

    def __init__(self, folder: Path, part_lock: Callable[[int], Path]) -> None:
        self._folder, self._part_lock = folder, part_lock

    def share(
        self, cases: Sequence[Case], *, part: int, parts: int, run: Sequence[str], of: Any = "", size: Callable[[Case], int] = case_voxels
    ) -> list[Case]:
        """Return this part's cases, in the order given. The caller holds the part's lock.

        Args:
            cases: All cases.
            run: Identity of the DAG run; empty outside of a run. Parts of equal runs share a plan. Without a run, a part
                that has had its share begins a new round once no other part is working.
            of: The requested cases, as JSON, since two tasks of a run may predict different cases into one folder.
            size: Returns the voxels of a case; called only for cases that are not in the plan.
        """
        if parts == 1:
            return list(cases)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{content_hash([list(run), of, parts])}.json"
        with locked(self._folder / _LOCK, interval=_INTERVAL_S):
            plan = _read(path)
            if not run and part in plan["taken"] and not any(self._at_work(other) for other in range(parts) if other != part):
                plan = _empty()
            known: dict[str, list[int]] = plan["cases"]
            here = {case.case for case in cases}
            new = {case.case: size(case) for case in cases if case.case not in known}
            load = dict.fromkeys(range(parts), 0)
            for case, (its_part, voxels) in known.items():
                load[its_part] += voxels + 1 if case in here else 0
            open_parts = {part, *(set(range(parts)) - set(plan["taken"]))}
            for case, its_part in balance(new, parts=open_parts, load=load).items():
                known[case] = [its_part, new[case]]
            plan["taken"] = sorted({part, *plan["taken"]})
            write_json(path, plan)
            self._forget_old(keep=path)
        return [case for case in cases if known[case.case][0] == part]

    def _at_work(self, part: int) -> bool:
        try:
            fd = os.open(self._part_lock(part), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not try_lock(fd)
        finally:
            os.close(fd)

    def _forget_old(self, *, keep: Path) -> None:
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                if path != keep and time.time() - path.stat().st_mtime > KEPT_S:
                    path.unlink()


def forget_cases(folder: Path, cases: Collection[str]) -> None:
    """Remove withdrawn cases from all plans in ``folder``, which may be missing."""
    if not folder.is_dir():
        return
    with locked(folder / _LOCK, interval=_INTERVAL_S):
        for path in folder.glob("*.json"):
            plan = _read(path)
            left = {case: entry for case, entry in plan["cases"].items() if case not in cases}
            if len(left) < len(plan["cases"]):
                write_json(path, {**plan, "cases": left})


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):
        return _empty()
    whole = isinstance(found, dict) and isinstance(found.get("cases"), dict) and isinstance(found.get("taken"), list)
    return found if whole else _empty()


def _empty() -> dict[str, Any]:
    return {"schema": 1, "taken": [], "cases": {}}
