"""Makes cross-validation splits once and extends them when cases arrive; groups by patient and never moves old validation cases.

A split is nnU-Net's: ``{"train": [case, ...], "val": [case, ...]}``, one per fold, in ``splits_final.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nnunet_jobs.contract.failure import ConfigError

Splits = list[dict[str, list[str]]]


def first_splits(groups: Mapping[str, str], *, folds: int, seed: int) -> Splits:
    """Make the first splits of a dataset.

    The shuffle is that of scikit-learn's ``KFold(shuffle=True, random_state=seed)`` over the sorted groups, so with one case
    a group the result is what nnU-Net itself would write (``generate_crossval_split``), without importing scikit-learn.

    Args:
        groups: Case to patient.
        folds: Number of splits.
        seed: Seed of the shuffle; nnU-Net's own is 12345.

    Raises:
        ConfigError: There are fewer patients than folds.
    """
    members: dict[str, list[str]] = {}
    for case in sorted(groups):
        members.setdefault(groups[case], []).append(case)
    # ordered by first case, not by patient name: with one case a patient this is the order of the cases, as in nnU-Net
    patients = sorted(members, key=lambda patient: members[patient][0])
    if len(patients) == 1:
        raise ConfigError(
            field="folds",
            value=folds,
            problem="the dataset has one patient for training, who cannot be trained and validated on",
            fix="add cases of other patients",
        )
    if len(patients) < 2:
        raise ConfigError(
            field="folds",
            value=folds,
            problem="all training cases are of one patient, and a cross-validation needs two",
            fix="add cases of another",
        )
    if len(patients) < folds:
        raise ConfigError(
            field="folds",
            value=folds,
            problem=f"the dataset has {len(patients)} patients for training",
            fix="use at most that many folds or add cases",
        )
    order = np.arange(len(patients))
    np.random.RandomState(seed).shuffle(order)  # the legacy generator is what scikit-learn uses
    splits: Splits = []
    for part in np.array_split(order, folds):
        held = {case for index in part for case in members[patients[int(index)]]}
        splits.append({"train": [case for case in sorted(groups) if case not in held], "val": sorted(held)})
    return splits


def extend_splits(old: Sequence[Mapping[str, Iterable[str]]], groups: Mapping[str, str]) -> Splits:
    """Adapt old splits to the present cases: removed cases are dropped, new ones are added, old ones stay where they were.

    A new case of a known patient follows the patient: validation where the patient is validated, training elsewhere. New
    patients go one after another to the fold with the fewest validation cases, in an order given by the hash of their name,
    so that the result depends on nothing but the old splits and the cases.

    Raises:
        ConfigError: A fold is left without training or validation cases.
    """
    kept = [{part: {case for case in fold[part] if case in groups} for part in ("train", "val")} for fold in old]
    known = set().union(*(fold["train"] | fold["val"] for fold in kept)) if kept else set()
    arriving: dict[str, list[str]] = {}
    for case in sorted(set(groups) - known):
        arriving.setdefault(groups[case], []).append(case)
    validated = [{groups[case] for case in fold["val"]} for fold in kept]
    seen = {groups[case] for case in known}
    for patient in sorted(arriving, key=_hash_order):
        if patient not in seen:
            smallest = min(range(len(kept)), key=lambda index: len(kept[index]["val"]))
            validated[smallest].add(patient)
        for fold, patients in zip(kept, validated, strict=True):
            fold["val" if patient in patients else "train"].update(arriving[patient])
    for number, fold in enumerate(kept):
        for part, cases in fold.items():
            if not cases:
                raise ConfigError(f"fold {number}: no case is left for {part!r} after cases were removed; add cases or use fewer folds")
    return [{part: sorted(cases) for part, cases in fold.items()} for fold in kept]


def leaking_patients(splits: Sequence[Mapping[str, Iterable[str]]], groups: Mapping[str, str]) -> list[str]:
    """Return patients who are in training and validation of one fold, for example since the grouping rule changed."""
    leaking: set[str] = set()
    for fold in splits:
        parts = [{groups[case] for case in fold[part] if case in groups} for part in ("train", "val")]
        leaking |= parts[0] & parts[1]
    return sorted(leaking)


def make_splits(
    groups: Mapping[str, str], *, folds: int, seed: int, old: Sequence[Mapping[str, Iterable[str]]] | None = None
) -> tuple[Splits, str]:
    """Return splits for the present cases and a text on how they were made.

    Old splits are extended, unless the number of folds changed or they would put a patient on both sides.
    """
    if old is None:
        return first_splits(groups, folds=folds, seed=seed), "first splits"
    if len(old) != folds:
        return first_splits(groups, folds=folds, seed=seed), f"folds changed from {len(old)} to {folds}: new splits"
    leaking = leaking_patients(old, groups)
    if leaking:
        return first_splits(groups, folds=folds, seed=seed), f"grouping changed, {len(leaking)} patients would be on both sides: new splits"
    extended = extend_splits(old, groups)
    same = extended == [{part: sorted(fold[part]) for part in ("train", "val")} for fold in old]
    return extended, "kept" if same else "extended: old validation cases stayed in their folds"


def _hash_order(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
