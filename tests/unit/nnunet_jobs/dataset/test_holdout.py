"""Who is held out: stable while data grows, by patient, never changed afterwards."""

import random

import pytest

from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.dataset.holdout import HOLDOUT, TRAIN, choose, groups_of, position


def split(groups, *, known=None, explicit=(), fraction=0.1, dataset_id=4):
    return choose(dataset_id=dataset_id, groups=groups, known=known or {}, explicit=explicit, fraction=fraction)


@pytest.mark.parametrize("seed", range(20))
def test_growing_data_never_moves_a_patient(seed):
    rng = random.Random(seed)
    groups: dict[str, str] = {}
    known: dict[str, str] = {}
    for night in range(12):
        for _ in range(rng.randint(0, 9)):
            groups[f"case{len(groups)}"] = f"p{rng.randint(0, 60)}"
        if rng.random() < 0.3 and len(groups) > 3:
            groups.pop(rng.choice(list(groups)))
        chosen = split(groups, known=known, fraction=rng.choice([0.05, 0.1, 0.3]), dataset_id=seed + 1)
        for case, where in chosen.items():
            assert known.setdefault(groups[case], where) == where, f"night {night}: {case} moved"
        if len(set(groups.values())) >= 5 and night == 0:
            assert HOLDOUT in chosen.values()


def test_membership_does_not_depend_on_who_else_is_there():
    everybody = {f"c{n}": f"p{n}" for n in range(300)}
    together = split(everybody)
    some = split({case: group for case, group in everybody.items() if int(case[1:]) % 3})
    assert all(together[case] == where for case, where in some.items())
    assert 0.05 < list(together.values()).count(HOLDOUT) / 300 < 0.15


def test_all_cases_of_a_patient_are_on_one_side():
    groups = {f"p{n // 4}_{n % 4}": f"p{n // 4}" for n in range(200)}
    sides = {}
    for case, where in split(groups, fraction=0.3).items():
        assert sides.setdefault(groups[case], where) == where
    assert set(sides.values()) == {TRAIN, HOLDOUT}


def test_five_patients_give_at_least_one_for_the_holdout_and_fewer_none_by_force():
    for dataset_id in range(1, 60):
        five = split({f"c{n}": f"c{n}" for n in range(5)}, fraction=0.01, dataset_id=dataset_id)
        assert HOLDOUT in five.values()
        assert TRAIN in five.values()
    assert set(split({"a": "a"}, fraction=0.99).values()) == {TRAIN}
    assert HOLDOUT not in split({f"c{n}": f"c{n}" for n in range(50)}, fraction=0.0).values()


def test_the_dataset_id_salts_the_choice():
    assert position(4, "p") != position(5, "p")
    assert 0 <= position(4, "p") < 1


def test_explicit_cases_take_their_patient_along():
    groups = {"a1": "a", "a2": "a", "b1": "b"}
    assert split(groups, explicit=["a1"], fraction=0.0) == {"a1": HOLDOUT, "a2": HOLDOUT, "b1": TRAIN}


def test_a_patient_who_was_trained_on_cannot_become_holdout():
    with pytest.raises(ConfigError, match=r"holdout_cases=\['a1'\].*training data before"):
        split({"a1": "a", "b1": "b"}, known={"a": TRAIN}, explicit=["a1"])


def test_patients_come_from_the_case_id():
    assert groups_of(["p1_t0", "p1_t1"], r"(p\d+)_") == {"p1_t0": "p1", "p1_t1": "p1"}
    assert groups_of(["x_p1"], r"(x)_(?P<group>p\d+)") == {"x_p1": "p1"}
    with pytest.raises(DataError) as caught:
        groups_of(["p1_t0", "odd", "other"], r"(p\d+)_")
    assert [fault.case for fault in caught.value.faults] == ["odd", "other"]
