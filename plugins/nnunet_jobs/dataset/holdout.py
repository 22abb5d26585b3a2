"""Chooses the hold-out by patient, by a hash that does not depend on other patients, and never changes it afterwards."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping

from nnunet_jobs.contract.failure import ConfigError, Fault
from nnunet_jobs.faults.codes import Code, data_error

TRAIN, HOLDOUT, TEST = "train", "holdout", "test"
_GUARANTEED_FROM = 5


def groups_of(cases: Collection[str], pattern: str | None) -> dict[str, str]:
    """Return the patient of each case: what ``pattern`` captures in the case id, or the case itself without a pattern.

    Raises:
        DataError: The pattern does not match some case ids; each is named.
    """
    if not pattern:
        return {case: case for case in cases}
    compiled = re.compile(pattern)
    key: str | int = "group" if "group" in compiled.groupindex else 1
    matches = {case: compiled.search(case) for case in cases}
    faults = [
        Fault(code=Code.GROUP_UNMATCHED, case=case, message=f"group_pattern {pattern!r} finds no patient in the case id")
        for case, match in matches.items()
        if not match or not match[key]
    ]
    if faults:
        raise data_error(faults, what="patients")
    return {case: str(match[key]) for case, match in matches.items() if match}


def position(dataset_id: int, group: str) -> float:
    """Return a patient's fixed position in [0, 1); the patient is held out if it is below the hold-out fraction."""
    digest = hashlib.sha256(f"{dataset_id}:{group}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in a float


def choose(
    *,
    dataset_id: int,
    groups: Mapping[str, str],
    known: Mapping[str, str],
    explicit: Collection[str],
    fraction: float,
) -> dict[str, str]:
    """Choose the split (``train`` or ``holdout``) of each labelled case.

    Known patients stay where they are. A new patient is held out when one of its cases is in ``explicit``, else when its
    :func:`position` is below ``fraction``; other patients do not matter, so no patient moves when data is added. If no patient
    would be held out, although ``fraction`` is more than 0 and there are 5 patients or more, the new patient with the lowest
    position is held out; if all patients would be, the new patient with the highest position is trained on.

    Args:
        dataset_id: Salt of the hash.
        groups: Patient of each labelled case, known and new.
        known: Split of each known patient.
        explicit: Case ids that are hold-out regardless of the hash.
        fraction: Share of patients.

    Raises:
        ConfigError: An explicit hold-out case belongs to a patient who has been training data before.
    """
    named = {groups[case] for case in explicit if case in groups}
    late = sorted(group for group in named if known.get(group) == TRAIN)
    if late:
        cases = sorted(case for case in explicit if groups.get(case) in late)
        raise ConfigError(
            field="holdout_cases",
            value=cases,
            problem="these patients have been training data before, and models have seen them",
            fix="remove them from holdout_cases, or register under a new dataset_id",
        )
    everybody = sorted(set(groups.values()), key=lambda group: (position(dataset_id, group), group))
    chosen = {
        group: known.get(group) or (HOLDOUT if group in named or position(dataset_id, group) < fraction else TRAIN) for group in everybody
    }
    new = [group for group in everybody if group not in known and group not in named]
    if new and fraction > 0 and len(everybody) >= _GUARANTEED_FROM and HOLDOUT not in chosen.values():
        chosen[new[0]] = HOLDOUT
    if new and TRAIN not in chosen.values():
        chosen[new[-1]] = TRAIN
    return {case: chosen[group] for case, group in groups.items()}
