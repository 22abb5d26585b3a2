"""Checks the source's own ``splits_final.json`` when the dataset is registered, and carries it into the dataset."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, Fault
from nnunet_jobs.contract.storage.files import open_regular, read_json
from nnunet_jobs.dataset.holdout import TRAIN
from nnunet_jobs.dataset.layouts.base import Source
from nnunet_jobs.dataset.names import UnusableName, check_links
from nnunet_jobs.dataset.splits import Splits, leaking_patients
from nnunet_jobs.faults.codes import Code

log = logging.getLogger("nnunet_jobs")
OWN_SPLITS = "splits_final.json"
_OLD = "splits_final.pkl"
_SIDES = ("train", "val")
_NAMED = 5


def read_own_splits(source: Source, *, known: Collection[str] = ()) -> Splits | None:
    """Return the source's own splits by the ids that the cases have here, or None where it has none. Faults go to the source.

    Args:
        source: The source as it was listed, with the ids that its cases are registered under.
        known: Further ids that may be named: registered cases that are not in the source any more, and withdrawn ones.
    """
    path = source.root / OWN_SPLITS
    if (source.root / _OLD).exists() and not path.exists():
        message = f"is not read, since a pickle may hold programs; write the splits as {OWN_SPLITS} if they are to be used"
        source.faults.append(Fault(code=Code.SPLITS_INVALID, severity="warning", file=_OLD, message=message))
    if not path.exists() and not path.is_symlink():
        return None
    try:
        check_links(source.root, path)
        with open_regular(path) as file:
            folds = json.loads(file.readall())
        _require_form(folds)
    except UnusableName as refused:
        source.faults.append(refused.fault)
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        source.faults.append(_fault(f"cannot be used: {reason}; correct it, or remove it, so that splits are made"))
        return None
    named = [{side: [source.renamed.get(case, case) for case in fold[side]] for side in _SIDES} for fold in folds]
    faults = [_fault(f"fold {number}: {text}") for number, fold in enumerate(named) for text in _problems(fold, source, set(known))]
    source.faults += faults
    return None if faults else named


def for_training(splits: Splits, entries: Mapping[str, Mapping[str, Any]]) -> tuple[Splits, list[Fault]]:
    """Return the splits without cases that are not trained on (hold-out, withdrawn), and the faults of the rest.

    Args:
        splits: Result of :func:`read_own_splits`.
        entries: The manifest's cases as they will be.
    """
    training = {case for case, entry in entries.items() if entry["split"] == TRAIN}
    kept = [{side: [case for case in fold[side] if case in training] for side in _SIDES} for fold in splits]
    faults = []
    for number, fold in enumerate(kept):
        for side in _SIDES:
            if not fold[side]:
                gone = _shown(splits[number][side])
                message = f"fold {number}: no case is left in {side!r}, since {gone} are hold-out or withdrawn; set holdout_fraction to 0"
                faults.append(_fault(message))
    groups = {case: str(entries[case]["group"]) for case in training}
    leaking = set(leaking_patients(kept, groups))
    if leaking and not faults:
        cases = _shown(sorted(case for case, group in groups.items() if group in leaking))
        message = f"has patients in training and validation of one fold ({len(leaking)}; cases {cases}), so that its Dice is too good"
        faults.append(Fault(code=Code.SPLITS_INVALID, severity="warning", file=OWN_SPLITS, message=message))
    return kept, faults


def registered_splits(folder: Path, *, only: Collection[str]) -> Splits | None:
    """Return the splits in a registered dataset's folder, with these cases only; None if there are none or the form is wrong."""
    try:
        folds = read_json(folder / OWN_SPLITS)
        _require_form(folds)
    except (OSError, ValueError):  # made by hand, and checked when it is used
        return None
    return [{side: [case for case in fold[side] if case in only] for side in _SIDES} for fold in folds]


def splits_by_hand(folder: Path, entries: Mapping[str, Mapping[str, Any]], *, withdrawn: Collection[str]) -> Splits:
    """Read and check the ``splits_final.json`` in a registered dataset's folder, which a person may have put there.

    Withdrawn cases are left out. Training cases that no fold names are logged, and distributed when the splits are extended.

    Args:
        folder: Folder of the dataset in ``nnUNet_raw``.
        entries: The manifest's cases.
        withdrawn: Cases that were registered once and are withdrawn now.

    Raises:
        ConfigError: The file is wrong; the message names every problem of every fold.
    """
    path = folder / OWN_SPLITS
    fix = "correct it, or remove it, so that splits are made"
    try:
        folds = read_json(path)
        _require_form(folds)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be used: {error}; {fix}") from error
    split = {case: str(entry["split"]) for case, entry in entries.items()}
    problems: list[str] = []
    for number, fold in enumerate(folds):
        named = sorted({*fold["train"], *fold["val"]} - set(withdrawn))
        if both := sorted(set(fold["train"]) & set(fold["val"])):
            problems.append(f"fold {number}: {_shown(both)} {_are(both)} in 'train' and in 'val'")
        if unknown := [case for case in named if case not in split]:
            problems.append(f"fold {number}: {_shown(unknown)} {_are(unknown)} not in the dataset")
        if held := [case for case in named if split.get(case, TRAIN) != TRAIN]:
            problems.append(f"fold {number}: {_shown(held)} {_are(held)} held out from training")
        problems += [f"fold {number}: {side!r} has no case for training" for side in _SIDES if not {*fold[side]} & set(named)]
    if problems:
        raise ConfigError(f"{path}: {' | '.join(problems)}; {fix}")
    kept = [{side: sorted({*fold[side]} - set(withdrawn)) for side in _SIDES} for fold in folds]
    training = {case for case, where in split.items() if where == TRAIN}
    for number, fold in enumerate(kept):
        if unnamed := sorted(training - {*fold["train"], *fold["val"]}):
            log.warning("%s: fold %d names %d training cases on neither side, such as %s", path, number, len(unnamed), unnamed[0])
    validated = Counter(case for fold in kept for case in fold["val"])
    if twice := sorted(case for case, count in validated.items() if count > 1):
        log.warning("%s: %s validated by several folds, which cannot be selected from together", path, _shown(twice))
    if leaking := leaking_patients(kept, {case: str(entries[case].get("group") or case) for case in training}):
        log.warning("%s: %d patients are in training and validation of one fold, so that its Dice is too good", path, len(leaking))
    return kept


def _require_form(folds: Any) -> None:
    """Raise ValueError unless it is a list of ``{"train": [case, ...], "val": [case, ...]}``."""
    if not isinstance(folds, list) or not folds:
        raise ValueError("it must be a list of folds")
    for number, fold in enumerate(folds):
        sides = [fold.get(side) for side in _SIDES] if isinstance(fold, dict) else []
        if not sides or not all(isinstance(side, list) and all(isinstance(case, str) for case in side) for side in sides):
            raise ValueError(f'fold {number} must be {{"train": [case, ...], "val": [case, ...]}}')


def _problems(fold: Mapping[str, Sequence[str]], source: Source, known: set[str]) -> list[str]:
    problems = [f"{side!r} has no case" for side in _SIDES if not fold[side]]
    problems += [
        f"{_shown(twice)} {_are(twice)} in {side!r} more than once"
        for side in _SIDES
        if (twice := [case for case, count in Counter(fold[side]).items() if count > 1])
    ]
    if both := sorted(set(fold["train"]) & set(fold["val"])):
        problems.append(f"{_shown(both)} {_are(both)} in 'train' and in 'val'; keep a case on one side")
    named = sorted({*fold["train"], *fold["val"]})
    unknown = [case for case in named if case not in source.cases and case not in known]
    if unknown:
        shown = (
            f"{len(unknown)} of its cases, not named here since the source holds DICOM files,"
            if source.layout == "dicom"
            else _shown(unknown)
        )
        problems.append(f"{shown} {_are(unknown)} not in the dataset; correct the id")
    if unlabelled := [case for case in named if case in source.cases and not source.cases[case].labelled]:
        problems.append(f"{_shown(unlabelled)} {_are(unlabelled)} test images without a label; take them out")
    return problems


def _shown(cases: Iterable[str]) -> str:
    found = list(cases)
    return ", ".join(map(repr, found[:_NAMED])) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")


def _are(cases: Sequence[str]) -> str:
    return "are" if len(cases) > 1 else "is"


def _fault(message: str) -> Fault:
    return Fault(code=Code.SPLITS_INVALID, file=OWN_SPLITS, message=message)


def carry_own_splits(source: Path, target: Path) -> None:
    """Copy the file when a source is turned into another folder first. It is checked when it is read."""
    path = source / OWN_SPLITS
    if path.is_file() and not path.is_symlink():
        with open_regular(path) as file:
            (target / OWN_SPLITS).write_bytes(file.readall() or b"")
