"""The gate: one decision after another on made-up scores, against theory, and replayed years of which the truth is known."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import scipy.stats
from benchmarks.promotion import LABELS, World, replay

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.promotion import PromotionPolicy
from nnunet_jobs.selection.gate.decision import Decision, decide, decide_json
from nnunet_jobs.selection.gate.history import History, Record
from nnunet_jobs.selection.gate.scores import CaseScores, difference

AT = datetime(2026, 3, 1, 22, tzinfo=UTC)
SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def case(name: str, champion: Mapping[str, Any], challenger: Mapping[str, Any], **fields: Any) -> CaseScores:
    whole = {"group": name, "since": SINCE, "anchor": {}, **fields}
    return CaseScores(case=name, champion=champion, challenger=challenger, **whole)


def cases(
    gain: float, *, number: int = 40, noise: float = 0.02, seed: int = 0, labels: Sequence[str] = LABELS, **fields: Any
) -> list[CaseScores]:
    """A challenger whose observed gain is exactly ``gain`` in each label."""
    draw = np.random.default_rng(seed)
    scatter = draw.normal(0, noise, (number, len(labels)))
    scatter -= scatter.mean(axis=0)
    found = []
    for row in range(number):
        old = dict.fromkeys(labels, 0.7)
        new = {label: 0.7 + gain + float(scatter[row, column]) for column, label in enumerate(labels)}
        found.append(case(f"case_{row}", old, new, **fields))
    return found


def answer(scores: Sequence[CaseScores], records: Sequence[Record] = (), at: datetime = AT, **policy: Any) -> Decision:
    return decide(PromotionPolicy(**policy), scores, records, at)


# --- scores -----------------------------------------------------------------------------------------------------------
def test_the_interval_is_students_of_the_paired_differences_of_patients() -> None:
    draw = np.random.default_rng(3)
    old, new = draw.uniform(0.6, 0.9, (30, 2)), draw.uniform(0.6, 0.9, (30, 2))
    pairs = zip(old, new, strict=True)
    scores = [case(str(number), {"a": a[0], "b": a[1]}, {"a": b[0], "b": b[1]}) for number, (a, b) in enumerate(pairs)]
    found = difference(scores)
    assert found is not None
    expected = scipy.stats.ttest_rel(new.mean(axis=1), old.mean(axis=1)).confidence_interval(0.95)
    assert found.interval(0.025) == pytest.approx((expected.low, expected.high))
    assert (found.before, found.after) == pytest.approx((old.mean(), new.mean()))


def test_several_cases_of_a_patient_are_one_observation() -> None:
    once = cases(0.01)
    twice = [case(f"{one.case}_{visit}", one.champion, one.challenger, group=one.group) for one in once for visit in range(3)]
    first, repeated = difference(once), difference(twice)
    assert first is not None
    assert repeated is not None
    assert repeated.cases == 3 * first.cases
    assert (repeated.patients, repeated.gain, repeated.error) == pytest.approx((first.patients, first.gain, first.error))


def test_a_rare_label_counts_as_much_as_a_common_one() -> None:
    scores = [case(str(number), {"common": 0.8, "rare": 0.5 if number < 4 else None}, {"common": 0.8, "rare": 0.6 if number < 4 else None})
              for number in range(40)]  # fmt: skip
    found = difference(scores)
    assert found is not None
    assert found.gain == pytest.approx(0.05)


def test_a_label_that_nobody_has_says_nothing_and_one_that_is_painted_where_it_is_not_counts_against_the_painter() -> None:
    absent = [case(str(number), {"a": 0.8, "b": None}, {"a": 0.8, "b": None}) for number in range(10)]
    assert set(answer(absent).labels) == {"a"}
    painted = [*absent[:8], *(case(str(number), {"a": 0.8, "b": None}, {"a": 0.8, "b": 0.0}) for number in (8, 9))]
    label = answer(painted, max_label_loss=0.1).labels["b"]
    assert (label.before, label.after, label.cases) == (1.0, pytest.approx(0.8), 10)
    assert answer(painted, max_label_loss=0.1).decision == "keep"


def test_a_label_that_one_of_them_does_not_know_is_not_compared() -> None:
    scores = [case(str(number), {"a": 0.8}, {"a": 0.9, "new": 0.7}) for number in range(10)]
    assert set(answer(scores).labels) == {"a"}


# --- decisions --------------------------------------------------------------------------------------------------------
def test_a_gain_beyond_chance_is_promoted_with_a_sentence_that_says_what_was_compared() -> None:
    found = answer(cases(0.03))
    assert found.decision == "promote"
    assert "On 40 hold-out cases of 40 patients the challenger has Dice 0.7300 and the champion 0.7000" in found.reason
    assert found.record.promoted
    low = found.to_json()["low"]
    assert 0 < low < 0.03


@pytest.mark.parametrize(("gain", "reason"), [(0.004, "may be chance"), (0.0, "not better"), (-0.03, "loses 3.00 points")])
def test_what_may_be_chance_is_kept(gain: float, reason: str) -> None:
    found = answer(cases(gain))
    assert found.decision == "keep"
    assert reason in found.reason


def test_no_label_may_lose_more_than_allowed_however_large_the_gain_of_the_others() -> None:
    scores = [
        case(one.case, {**one.champion, "c": 0.8}, {**dict.fromkeys(one.challenger, 0.9), "c": 0.785}) for one in cases(0.1, noise=0.001)
    ]
    found = answer(scores)
    assert found.decision == "keep"
    assert "label c loses 1.50 points" in found.reason
    assert answer(scores, max_label_loss=0.02).decision == "promote"


def test_min_gain_is_asked_of_the_lower_bound() -> None:
    assert answer(cases(0.03), min_gain=0.01).decision == "promote"
    assert answer(cases(0.03), min_gain=0.025).decision == "keep"


def test_one_patient_or_a_few_equal_differences_promote_nobody() -> None:
    assert answer(cases(0.2, number=1)).decision == "keep"
    assert answer(cases(0.01, number=3, noise=0.0)).decision == "keep"


def test_the_first_model_has_nobody_to_beat_and_must_reach_min_dice() -> None:
    first = [case(one.case, {}, one.challenger) for one in cases(0.0)]
    assert answer(first).decision == "promote"
    assert answer(first, min_dice=0.69).decision == "promote"
    kept = answer(first, min_dice=0.75)
    assert kept.decision == "keep"
    assert "Dice 0.700 on 40 hold-out cases, and must reach 0.750" in kept.reason


def test_policies_that_do_not_look_at_the_scores() -> None:
    assert answer(cases(0.5), promote="never").decision == "keep"
    assert answer(cases(-0.5), promote="always").decision == "promote"
    asked = answer(cases(0.5), promote="ask")
    assert (asked.decision, asked.record.promoted, asked.record.spent) == ("ask", False, 0.0)


def test_small_losses_cannot_add_up_against_the_anchor() -> None:
    records: list[Record] = []
    promoted = 0
    for night in range(20):
        found = answer(cases(-0.002, noise=0.001, seed=night), records, AT + timedelta(days=night), promote="if_not_worse")
        records.append(found.record)
        promoted += found.decision == "promote"
    assert 3 <= promoted <= 5  # 0.2 points each, one point in all
    assert "cannot be excluded" in found.reason


def test_a_person_who_approves_moves_the_anchor() -> None:
    low = [Record(at=SINCE.isoformat(), decision="promote", promoted=True, gain=-0.009, noise=0.001, patients=40)]
    approved = [*low, Record(at=AT.isoformat(), decision="ask", promoted=True, approved=True, gain=0.0, noise=0.001, patients=40)]
    tonight = AT + timedelta(days=1)
    assert answer(cases(-0.004, noise=0.001), low, tonight, promote="if_not_worse").decision == "keep"
    assert answer(cases(-0.004, noise=0.001), approved, tonight, promote="if_not_worse").decision == "promote"


def test_scores_of_the_anchor_itself_count_where_they_are_given() -> None:
    far = [case(one.case, one.champion, one.challenger, anchor=dict.fromkeys(LABELS, 0.8)) for one in cases(0.01, noise=0.001)]
    found = answer(far, promote="if_not_worse")
    assert found.decision == "keep"
    assert found.anchor is not None
    assert found.anchor.gain == pytest.approx(-0.09)


def test_a_champion_that_has_seen_withdrawn_cases_is_replaced_by_the_first_model_that_reaches_the_anchor() -> None:
    policy = PromotionPolicy()
    near, far = (decide(policy, cases(gain), [], AT, withdrawn=True) for gain in (-0.005, -0.02))
    assert (near.decision, far.decision) == ("promote", "keep")
    assert "trained on cases that were withdrawn since" in near.reason
    never = decide(PromotionPolicy(promote="never"), cases(0.1), [], AT, withdrawn=True)
    assert never.decision == "keep"


def test_cases_that_came_since_the_last_decision_are_reported_apart() -> None:
    late = AT - timedelta(hours=1)
    fresh = [case(f"new_{number}", {"a": 0.5}, {"a": 0.7}, since=late) for number in range(5)]
    before = [Record(at=(AT - timedelta(days=1)).isoformat(), decision="keep")]
    found = answer([*cases(0.0, labels=["a"]), *fresh], before)
    assert found.new_cases is not None
    assert (found.new_cases.cases, found.new_cases.gain) == (5, pytest.approx(0.2))
    assert answer(cases(0.0), before).new_cases is None


# --- the budget and what selection does -------------------------------------------------------------------------------
def test_the_yearly_budget_is_never_exceeded_even_by_more_runs_than_declared() -> None:
    policy = PromotionPolicy(error_budget_per_year=0.05, runs_per_year=10)
    records: list[Record] = []
    for run in range(40):
        at = AT + timedelta(days=run)
        share = History(records, at).error_share(policy)
        records.append(Record(at=at.isoformat(), decision="keep", spent=share))
    assert [record.spent for record in records[:10]] == pytest.approx([0.005] * 10)
    assert sum(record.spent for record in records) <= 0.05 * (1 + 1e-6)
    later = History(records, AT + timedelta(days=400)).error_share(policy)
    assert later == pytest.approx(0.005)  # a year later it is there again


def test_a_budget_that_is_spent_promotes_nobody_and_says_so() -> None:
    spent = [Record(at=SINCE.isoformat(), decision="keep", gain=0.0, noise=0.002, patients=40, spent=0.05)]
    found = answer(cases(0.3), spent)
    assert found.decision == "keep"
    assert "an error budget of 0.05 a year is spent" in found.reason
    assert found.to_json()["low"] is None


def test_decisions_of_the_future_and_their_order_do_not_matter() -> None:
    records = [answer(cases(0.001, seed=night), at=AT + timedelta(days=night)).record for night in range(6)]
    at = AT + timedelta(days=3, hours=1)
    one, other = answer(cases(0.02), records, at), answer(cases(0.02), records[3::-1], at)
    assert one == other


def test_a_lucky_challenger_is_expected_to_gain_less_and_a_lucky_champion_to_lead_by_less() -> None:
    quiet = [answer(cases(0.0, seed=night), at=AT + timedelta(days=night)).record for night in range(30)]
    tonight = AT + timedelta(days=31)
    found = answer(cases(0.012), quiet, tonight)
    assert found.expected_gain is not None
    assert found.expected_gain < 0.012
    promoted = Record(at=tonight.isoformat(), decision="promote", promoted=True, gain=0.012, noise=0.003, patients=40, luck=0.004)
    assert History([*quiet, promoted], tonight).champions_luck(40) == pytest.approx(0.004)
    assert History([*quiet, promoted], tonight).champions_luck(80) == pytest.approx(0.002)


@pytest.mark.parametrize("seed", [1, 2])
def test_replayed_years_keep_what_the_gate_promises(seed: int) -> None:
    draw = random.Random(seed)
    policy = PromotionPolicy()
    equal = [replay(World(cases=40, spread=0.0, noise=0.021), policy, draw) for _ in range(3)]
    assert sum(map(len, equal)) <= 1  # 0.15 are expected in three years
    gains = {70: 0.02, 140: 0.02, 210: 0.02, 280: 0.02}
    years = [replay(World(cases=40, spread=0.006, noise=0.021, gains=gains), policy, draw) for _ in range(3)]
    promoted = [one for year in years for one in year]
    assert not any(one.true < 0 for one in promoted)
    waits = [min((one.night - night for one in year if 0 <= one.night - night < 70), default=70) for year in years for night in gains]
    assert sorted(waits)[len(waits) // 2] < 14
    assert waits.count(70) == 0
    assert np.mean([abs(one.expected - one.true) for one in promoted]) <= 0.003


# --- the command ------------------------------------------------------------------------------------------------------
def request(**fields: Any) -> dict[str, Any]:
    rows = [
        {"case": one.case, "group": one.group, "since": SINCE.isoformat(), "champion": one.champion, "challenger": one.challenger}
        for one in cases(0.03)
    ]
    return {"policy": {"promote": "if_better"}, "at": AT.isoformat(), "history": [], "cases": rows, **fields}


def test_the_command_answers_each_line_before_the_next_and_the_record_is_the_next_ones_history() -> None:
    command = [sys.executable, "-m", "nnunet_jobs", "gate"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = []
        for line in (json.dumps(request()), "nonsense", None):
            text = line or json.dumps(request(history=[answers[0]["record"]], at=(AT + timedelta(days=1)).isoformat()))
            print(text, file=process.stdin, flush=True)
            answers.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.wait(60) == 3
    assert [one.get("decision") for one in answers] == ["promote", None, "promote"]
    assert "not JSON" in answers[1]["error"]
    assert answers[0] == decide_json(request())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"policy": {"promote": "if_beter"}}, "promote='if_beter'"),
        ({"policy": {"min_gian": 0.1}}, "did you mean 'min_gain'"),
        ({"policy": {"error_budget_per_year": 0}}, "error_budget_per_year"),
        ({"policy": []}, "policy="),
        ({"at": "2026-03-01"}, "at="),
        ({"at": None}, "at="),
        ({"history": [{"at": AT.isoformat()}]}, "history="),
        ({"history": [{"at": AT.isoformat(), "decision": "keep", "gain": "much"}]}, "gain='much'"),
        ({"history": [{"at": AT.isoformat(), "decision": "keep", "gain": 10**400}]}, "must be a number from -1 to 1"),
        ({"history": [{"at": AT.isoformat(), "decision": "keep", "spent": -5}]}, "spent=-5"),
        ({"history": [{"at": AT.isoformat(), "decision": "keep", "promoted": "no"}]}, "promoted='no'"),
        ({"cases": [{"case": "a", "group": "a", "since": SINCE.isoformat(), "champion": {"l": 80}}]}, "champion.l=80"),
        ({"cases": [{"case": "a", "group": "a", "since": "yesterday"}]}, "since='yesterday'"),
        ({"cases": [{"group": "a", "since": SINCE.isoformat()}]}, "case"),
        ({"cases": 2 * [{"case": "a", "group": "a", "since": SINCE.isoformat()}]}, "there twice"),
    ],
)
def test_a_wrong_request_is_named_with_its_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        decide_json(request(**fields))
    assert named in str(error.value)


def test_lines_that_no_parser_can_read_are_refused_alone() -> None:
    lines = [b"\xff", b"[" * 100_000, json.dumps(request()).encode()]
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_jobs", "gate"], input=b"\n".join(lines), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert [json.loads(line).get("decision") for line in done.stdout.splitlines()] == [None, None, "promote"]


@pytest.mark.parametrize("budget", [1e-9, 1e-14, 1e-300])
def test_the_interval_of_a_tiny_budget_is_as_wide_as_it_must_be(budget: float) -> None:
    found = answer(cases(0.03), error_budget_per_year=budget, runs_per_year=1)
    assert found.compared is not None
    low = found.to_json()["low"]
    assert low == pytest.approx(found.compared.gain - scipy.stats.t.isf(budget, 39) * found.compared.error, rel=1e-6)


def test_a_request_of_the_first_or_last_day_of_all_calendars_is_answered() -> None:
    for at in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        earlier = {"at": at, "decision": "keep", "spent": 0.01}
        assert decide_json(request(at=at, history=[earlier]))["decision"] == "promote"


def test_nights_without_any_noise_divide_by_nothing() -> None:
    silent = [Record(at=AT.isoformat(), decision="keep", gain=gain, noise=0.0, patients=5) for gain in (0.01, 0.01, -1.0, 1.0)]
    assert answer(cases(0.03), silent, seed_spread=0.0).expected_gain is not None


def test_five_hundred_cases_are_judged_in_no_time_and_the_answer_is_json() -> None:
    found = answer(cases(0.004, number=500, noise=0.02))
    assert found.decision == "promote"
    json.dumps(found.to_json(), allow_nan=False)
