"""Splits: nnU-Net's own at first, then extended without moving anybody."""

from __future__ import annotations

import random

import pytest

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.dataset.splits import extend_splits, first_splits, leaking_patients, make_splits


def single(count: int) -> dict[str, str]:
    return {f"case_{number:04d}": f"case_{number:04d}" for number in range(count)}


@pytest.mark.parametrize(("cases", "folds", "seed"), [(5, 5, 12345), (6, 5, 12345), (40, 5, 12345), (200, 5, 12345), (33, 3, 7), (9, 2, 0)])
def test_first_splits_are_those_of_nnunet_when_every_patient_has_one_case(cases: int, folds: int, seed: int) -> None:
    from sklearn.model_selection import KFold

    names = sorted(single(cases))
    theirs = [
        {"train": [names[index] for index in train], "val": [names[index] for index in held]}
        for train, held in KFold(n_splits=folds, shuffle=True, random_state=seed).split(names)
    ]
    assert first_splits(single(cases), folds=folds, seed=seed) == theirs


@pytest.mark.filterwarnings("ignore")
def test_first_splits_equal_generate_crossval_split() -> None:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    theirs = generate_crossval_split(sorted(single(40)), seed=12345, n_splits=5)
    plain = [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in theirs]
    assert first_splits(single(40), folds=5, seed=12345) == plain


def test_the_name_of_the_only_patient_of_a_case_does_not_matter() -> None:
    renamed = {case: f"patient_{hash_}" for hash_, case in enumerate(sorted(single(20), reverse=True))}
    assert first_splits(renamed, folds=5, seed=12345) == first_splits(single(20), folds=5, seed=12345)


def test_more_folds_than_patients_is_refused_with_the_mend() -> None:
    with pytest.raises(ConfigError, match=r"folds=5: the dataset has 4 patients"):
        first_splits({f"case_{number}": f"patient_{number % 4}" for number in range(12)}, folds=5, seed=1)
    assert len(first_splits(single(5), folds=5, seed=1)) == 5


@pytest.mark.parametrize("seed", range(40))
def test_fault_37_cases_come_and_go_and_no_old_validation_case_moves(seed: int) -> None:
    """Forty random histories of nightly runs, with patients of one to three cases."""
    rng = random.Random(seed)
    folds = rng.randint(2, 5)
    groups = {f"case_{number:03d}": f"patient_{number // rng.randint(1, 3)}" for number in range(folds * 4)}
    if len(set(groups.values())) < folds:
        groups = single(folds * 4)
    splits, _ = make_splits(groups, folds=folds, seed=seed)
    for night in range(6):
        before, old_groups = splits, dict(groups)
        for number in range(rng.randint(0, 4)):
            known = rng.choice(sorted(set(groups.values())))
            groups[f"night_{night}_{number}"] = known if rng.random() < 0.4 else f"new_{night}_{number % 2}"
        removable = [case for case in sorted(groups) if case in old_groups]
        for case in rng.sample(removable, k=rng.randint(0, 1)):
            if all(set(fold["val"]) - {case} and set(fold["train"]) - {case} for fold in before):
                del groups[case]
        splits, _ = make_splits(groups, folds=folds, seed=seed, old=before)
        assert splits == make_splits(groups, folds=folds, seed=seed, old=before)[0]
        assert not leaking_patients(splits, groups)
        for old, new in zip(before, splits, strict=True):
            assert set(new["train"]) | set(new["val"]) == set(groups)
            assert not set(new["train"]) & set(new["val"])
            assert {case for case in old["val"] if case in groups} <= set(new["val"])
            assert {case for case in old["train"] if case in groups} <= set(new["train"])
        validated = [case for fold in splits for case in fold["val"]]
        assert sorted(validated) == sorted(groups), "every case is validated exactly once"


def test_new_patients_are_spread_evenly() -> None:
    old = first_splits(single(20), folds=5, seed=12345)
    grown = {**single(20), **{f"new_{number}": f"new_{number}" for number in range(10)}}
    assert [len(fold["val"]) for fold in extend_splits(old, grown)] == [6] * 5


def test_a_new_case_of_a_known_patient_follows_the_patient() -> None:
    old = first_splits({f"case_{number}": f"patient_{number}" for number in range(5)}, folds=5, seed=1)
    grown = {**{f"case_{number}": f"patient_{number}" for number in range(5)}, "case_2_again": "patient_2"}
    for fold in extend_splits(old, grown):
        assert ("case_2" in fold["val"]) == ("case_2_again" in fold["val"])


def test_a_grouping_rule_that_would_leak_a_patient_makes_new_splits() -> None:
    old = first_splits(single(20), folds=5, seed=12345)
    grouped = {case: f"patient_{int(case[-4:]) // 2}" for case in single(20)}
    splits, how = make_splits(grouped, folds=5, seed=12345, old=old)
    assert "both sides" in how
    assert not leaking_patients(splits, grouped)


def test_another_number_of_folds_makes_new_splits() -> None:
    old = first_splits(single(20), folds=5, seed=12345)
    splits, how = make_splits(single(20), folds=3, seed=12345, old=old)
    assert len(splits) == 3
    assert "5 to 3" in how


def test_a_fold_that_lost_all_its_cases_is_named() -> None:
    old = first_splits(single(5), folds=5, seed=12345)
    left = {case: case for case in single(5) if case not in old[3]["val"]}
    with pytest.raises(ConfigError, match="fold 3"):
        extend_splits(old, left)
