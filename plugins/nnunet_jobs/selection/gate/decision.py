"""One decision of the gate: promote, keep or ask, with the reason in a sentence and the record that later decisions need."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.promotion import PromotionPolicy
from nnunet_jobs.selection.gate.history import History, Record
from nnunet_jobs.selection.gate.scores import CaseScores, Difference, by_label, difference, read_time

_ROUNDING = 1e-9  # of sums of Dice


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The gate's answer.

    Attributes:
        decision: ``promote``, ``keep`` or ``ask``.
        reason: A sentence: what was compared on how many cases, both scores, and why.
        compared: The paired difference; None where there is no champion, or nothing in common with it.
        alpha: Probability of an error by chance that the interval allows on each side.
        expected_gain: The gain less what selection makes of luck: of the challenger, chosen because it looks good, and of
            the champion, once chosen likewise. None as ``compared``.
        seed_spread: What another seed alone would change, one standard deviation in Dice.
        labels: The paired difference of each label.
        new_cases: The same of cases that came since the last decision; None where there are none.
        anchor: Difference from the anchor, for ``if_not_worse``.
        record: For the history.
    """

    decision: str
    reason: str
    compared: Difference | None
    alpha: float
    expected_gain: float | None
    seed_spread: float
    labels: Mapping[str, Difference]
    new_cases: Difference | None
    anchor: Difference | None
    record: Record

    def to_json(self) -> dict[str, Any]:
        """What ``python -m nnunet_jobs gate`` prints."""
        shown = self.compared.to_json(self.alpha) if self.compared else dict.fromkeys(("gain", "low", "high", "champion", "challenger"))
        return {
            "decision": self.decision,
            "reason": self.reason,
            **shown,
            "expected_gain": self.expected_gain,
            "error_probability": self.alpha,
            "seed_spread": self.seed_spread,
            "labels": {name: item.to_json(self.alpha) for name, item in self.labels.items()},
            "new_cases": self.new_cases.to_json(self.alpha) if self.new_cases else None,
            "anchor": self.anchor.to_json(self.alpha) if self.anchor else None,
            "record": self.record.to_json(),
        }


def decide_json(request: Any) -> dict[str, Any]:
    """Answer one request of ``python -m nnunet_jobs gate``.

    Args:
        request: ``policy`` (fields of :class:`PromotionPolicy`), ``at`` (ISO time), ``history`` (the ``record`` of each earlier
            answer), ``cases`` (see :class:`CaseScores`), and ``champion_withdrawn``, true where the champion was trained on cases
            that were withdrawn since.

    Raises:
        ConfigError: A field is missing or wrong.
    """
    if not isinstance(request, dict):
        raise ConfigError(field="request", value=request, problem="must be a JSON object")
    for name, kind in (("policy", dict), ("history", list), ("cases", list)):
        if not isinstance(request.get(name, kind()), kind):
            raise ConfigError(field=name, value=request[name], problem=f"must be a JSON {'object' if kind is dict else 'array'}")
    at = read_time(request.get("at"), where="", field="at")
    cases = [CaseScores.from_json(case) for case in request.get("cases", [])]
    twice = [case for case, count in Counter(case.case for case in cases).items() if count > 1]
    if twice:
        raise ConfigError(field="cases", value=twice[0], problem="is there twice", fix="give each case once")
    records = [Record.from_json(record) for record in request.get("history", [])]
    withdrawn = request.get("champion_withdrawn", False)
    if not isinstance(withdrawn, bool):
        raise ConfigError(field="champion_withdrawn", value=withdrawn, problem="must be true or false")
    return decide(PromotionPolicy.from_json(request.get("policy", {})), cases, records, at, withdrawn=withdrawn).to_json()


def decide(
    policy: PromotionPolicy, cases: Sequence[CaseScores], records: Sequence[Record], at: datetime, *, withdrawn: bool = False,
    kind: str = "hold-out", first: bool | None = None,
) -> Decision:  # fmt: skip
    """Decide whether the challenger takes the champion's place.

    Args:
        policy: When it does.
        cases: Hold-out cases that neither model has trained on, with the scores of both.
        records: Earlier decisions of this dataset, in any order.
        at: Now, with its offset from UTC.
        withdrawn: The champion was trained on cases that were withdrawn since. It is no champion to beat then: the first model that
            reaches the anchor within the margin replaces it.
        kind: What the cases are, for the sentence.
        first: Whether the dataset has no champion. If None, it has none where no case has scores of one.
    """
    history = History(records, at)
    compared = difference(cases)
    labels = by_label(cases)
    alpha = history.error_share(policy)
    spread = history.seed_spread(policy)
    luck, noise, expected = 0.0, None, None
    if compared and compared.error is not None:
        noise = compared.error / math.sqrt(2)
        luck = history.luck(compared.gain, noise, policy)
        expected = compared.gain - luck + history.champions_luck(compared.patients)
    anchor = _against_anchor(cases, compared, history) if withdrawn or policy.promote == "if_not_worse" else None
    if first is None:
        first = not any(case.champion for case in cases)
    verdict, why = _verdict(policy, cases, compared, labels, anchor, alpha, withdrawn=withdrawn, first=first)
    tested = policy.promote in ("if_better", "if_not_worse") and noise is not None
    record = Record(
        at=at.isoformat(),
        decision=verdict,
        promoted=verdict == "promote",
        gain=compared.gain if compared else None,
        noise=noise,
        patients=compared.patients if compared else 0,
        luck=luck,
        spent=alpha if tested else 0.0,
    )
    last = history.last_decision
    newer = [case for case in cases if last is not None and case.since > last]
    return Decision(
        decision=verdict,
        reason=_sentence(compared, why, kind),
        compared=compared,
        alpha=alpha,
        expected_gain=expected,
        seed_spread=spread,
        labels=labels,
        new_cases=difference(newer),
        anchor=anchor,
        record=record,
    )


def _against_anchor(cases: Sequence[CaseScores], compared: Difference | None, history: History) -> Difference | None:
    """The challenger against the anchor: on the anchor's own scores where they are given, else by the gains on record since then."""
    if compared is None:
        return None
    if any(case.anchor for case in cases):
        return difference(cases, against="anchor")
    since = history.anchor_gain()
    return Difference(
        gain=compared.gain + since,
        error=compared.error,
        patients=compared.patients,
        cases=compared.cases,
        before=compared.before - since,
        after=compared.after,
    )


def _verdict(
    policy: PromotionPolicy,
    cases: Sequence[CaseScores],
    compared: Difference | None,
    labels: Mapping[str, Difference],
    anchor: Difference | None,
    alpha: float,
    *,
    withdrawn: bool,
    first: bool,
) -> tuple[str, str]:
    """Give (decision, why)."""
    if policy.promote == "never":
        return "keep", "the policy is never to promote"
    if policy.promote == "always":
        return "promote", "the policy is always to promote"
    if first:
        return _first_model(policy, cases)
    if policy.promote == "ask":
        return "ask", "the policy leaves the decision to a person"
    if compared is None:
        return "keep", "champion and challenger have no label in common that both were judged by"
    if withdrawn and anchor is not None:
        old = "the champion was trained on cases that were withdrawn since"
        if anchor.gain >= -policy.margin - _ROUNDING:
            return "promote", f"{old}, and the challenger reaches the approved model within {_points(policy.margin)}"
        return "keep", f"{old}, but the challenger is {_points(-anchor.gain)} behind the approved model, more than {_points(policy.margin)}"
    if compared.error is None:
        return "keep", f"{compared.cases} cases of one patient cannot tell a difference from chance"
    worst = min(labels, key=lambda name: labels[name].gain)
    if labels[worst].gain < -policy.max_label_loss - _ROUNDING:
        return "keep", f"label {worst} loses {_points(-labels[worst].gain)}, more than the {_points(policy.max_label_loss)} allowed"
    chance = f"an error budget of {policy.error_budget_per_year:g} a year"
    if alpha <= 0:
        return "keep", f"{chance} is spent by the decisions of the last 365 days"
    if policy.promote == "if_not_worse":
        if anchor is None or anchor.error is None:
            return "ask", "nothing says how the challenger compares with the last model that a person approved"
        low = anchor.interval(alpha)[0]
        if low is not None and low > -policy.margin:
            return "promote", f"it is not worse than the approved model by more than {_points(policy.margin)}, at {chance}"
        return "keep", f"a loss of more than {_points(policy.margin)} against the approved model cannot be excluded at {chance}"
    low = compared.interval(alpha)[0]
    if low is not None and low > policy.min_gain:
        return "promote", f"the gain is at least {_points(low)} at {chance}, so it is beyond chance"
    if compared.gain <= policy.min_gain:
        return "keep", "it is not better" if policy.min_gain == 0 else f"the gain is not more than {_points(policy.min_gain)}"
    return "keep", f"a gain of {_points(compared.gain)} on {compared.patients} patients may be chance at {chance}"


def _first_model(policy: PromotionPolicy, cases: Sequence[CaseScores]) -> tuple[str, str]:
    """A dataset without a champion: its first model must only reach ``min_dice``."""
    scores: dict[str, list[float]] = {}
    for case in cases:
        for label, dice in case.challenger.items():
            if dice is not None:
                scores.setdefault(label, []).append(dice)
    mean = math.fsum(math.fsum(values) / len(values) for values in scores.values()) / len(scores) if scores else None
    reached = "an undefined Dice, as no hold-out case has a label" if mean is None else f"Dice {mean:.3f} on {len(cases)} hold-out cases"
    if policy.min_dice is not None and (mean is None or mean < policy.min_dice):
        return "keep", f"the first model has {reached}, and must reach {policy.min_dice:.3f}"
    if policy.promote == "ask":
        return "ask", f"the policy leaves the decision to a person; the first model has {reached}"
    return "promote", f"it is the first model, with {reached}"


def _sentence(compared: Difference | None, why: str, kind: str) -> str:
    if compared is None:
        return f"{why[0].upper()}{why[1:]}."
    return (
        f"On {_count(compared.cases, f'{kind} case')} of {_count(compared.patients, 'patient')} the challenger has Dice "
        f"{compared.after:.4f} and the champion {compared.before:.4f}: {why}."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _points(dice: float) -> str:
    return f"{100 * dice:.2f} points of Dice"
