"""Scores of two models on the same cases, and their differences by patient and by label."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scipy.special import stdtrit

from nnunet_jobs.contract.failure import ConfigError

LEAST_SPREAD = 0.001
"""Smallest standard deviation between patients that is believed, in Dice: a few equal differences show no certainty."""

Dice = Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseScores:
    """One hold-out case as two models segment it.

    Attributes:
        case: Case id.
        group: Patient; cases of one patient count as one observation.
        since: When the case became a hold-out case.
        champion: Dice by label, 0..1; None where it is undefined, because neither reference nor segmentation has the label.
        challenger: The same of the challenger.
        anchor: The same of the last model that a person approved; empty where that is not known.
    """

    case: str
    group: str
    since: datetime
    champion: Dice
    challenger: Dice
    anchor: Dice

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseScores:
        """Read one case.

        Raises:
            ConfigError: A field is missing, or a score is not a number between 0 and 1.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(field="cases", value=data, problem="must be JSON objects")
        case = data.get("case")
        if not isinstance(case, str) or not case:
            raise ConfigError(where="cases:", field="case", value=case, problem="must be the id of the case")
        where = f"case {case}:"
        group = data.get("group", case)
        if not isinstance(group, str) or not group:
            raise ConfigError(where=where, field="group", value=group, problem="must be the patient's id")
        since = read_time(data.get("since"), where=where, field="since")
        scores = {role: _dice(data.get(role, {}), where=where, role=role) for role in ("champion", "challenger", "anchor")}
        return cls(case=case, group=group, since=since, **scores)


def read_time(value: Any, *, where: str, field: str) -> datetime:
    """Read an ISO time with its offset from UTC.

    Raises:
        ConfigError: It is none.
    """
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        time = None
    if time is None or time.tzinfo is None:
        fix = "write it as 2026-01-31T22:00:00+00:00"
        raise ConfigError(where=where, field=field, value=value, problem="must be an ISO time with an offset from UTC", fix=fix)
    return time


def _dice(scores: Any, *, where: str, role: str) -> Dice:
    if scores is None:
        return {}
    if not isinstance(scores, Mapping):
        raise ConfigError(where=where, field=role, value=scores, problem="must be Dice by label")
    for label, dice in scores.items():
        fits = dice is None or (isinstance(dice, int | float) and not isinstance(dice, bool) and 0 <= dice <= 1)
        if not fits:
            raise ConfigError(where=where, field=f"{role}.{label}", value=dice, problem="must be a number from 0 to 1, or null")
    return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much higher the Dice of one model is than that of another, on the same cases.

    Attributes:
        gain: Mean over labels of the mean over patients.
        error: Standard error of ``gain``; None with fewer than two patients.
        patients: Number of patients.
        cases: Number of cases.
        before: Mean Dice of the model that is compared with, over the same labels, patients and cases.
        after: The same of the other model.
    """

    gain: float
    error: float | None
    patients: int
    cases: int
    before: float
    after: float

    def interval(self, alpha: float) -> tuple[float | None, float | None]:
        """Bounds of the gain that chance crosses, on each side, with probability ``alpha`` (Student's t over patients).

        There are none with a single patient, or where no error, or hardly any, is allowed.
        """
        if self.error is None or alpha <= 0:
            return None, None
        width = -float(stdtrit(self.patients - 1, alpha)) * self.error  # not of 1 - alpha, which loses the digits of a small alpha
        if not math.isfinite(width):
            return None, None
        return self.gain - width, self.gain + width

    def to_json(self, alpha: float) -> dict[str, Any]:
        """What a person is shown of it."""
        low, high = self.interval(alpha)
        return {
            "gain": self.gain, "low": low, "high": high, "champion": self.before, "challenger": self.after,
            "patients": self.patients, "cases": self.cases,
        }  # fmt: skip


def difference(
    cases: Iterable[CaseScores], *, of: str = "challenger", against: str = "champion", label: str | None = None
) -> Difference | None:
    """Compare two models over all labels that both have scores of, or over one; None where they have none in common.

    Each label counts the same, whether many patients have it or few, as in nnU-Net's foreground mean. The standard error comes from
    each patient's influence on that mean, so that the labels of one patient are not taken for independent observations.
    """
    pairs: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    used = set()
    scores = [(case, getattr(case, against), getattr(case, of)) for case in cases]
    painted = frozenset(name for _, before, after in scores for name in _painted(before, after))
    for case, before, after in scores:
        for name, pair in _pairs(before, after, painted):
            if label is None or name == label:
                pairs[name][case.group].append(pair)
                used.add(case.case)
    if not pairs:
        return None
    patients = {name: [_patient(found) for found in groups.values()] for name, groups in pairs.items()}
    means = {name: (_mean([old for old, _ in found]), _mean([new for _, new in found])) for name, found in patients.items()}
    former, latter = (_mean([mean[side] for mean in means.values()]) for side in (0, 1))
    influence = dict.fromkeys((group for groups in pairs.values() for group in groups), 0.0)
    number = len(influence)
    for name, groups in pairs.items():
        weight = number / (len(groups) * len(pairs))
        usual = means[name][1] - means[name][0]
        for group, (old, new) in zip(groups, patients[name], strict=True):
            influence[group] += (new - old - usual) * weight
    error = None
    if number >= 2:
        spread = math.sqrt(math.fsum(value * value for value in influence.values()) / (number - 1))
        error = max(spread, LEAST_SPREAD) / math.sqrt(number)
    return Difference(gain=latter - former, error=error, patients=number, cases=len(used), before=former, after=latter)


def by_label(cases: Sequence[CaseScores], *, of: str = "challenger", against: str = "champion") -> dict[str, Difference]:
    """Give the same comparison for each label alone."""
    labels = sorted({label for case in cases for label in (*getattr(case, against), *getattr(case, of))})
    found = {label: difference(cases, of=of, against=against, label=label) for label in labels}
    return {label: compared for label, compared in found.items() if compared is not None}


def _pairs(before: Dice, after: Dice, painted: frozenset[str]) -> Iterable[tuple[str, tuple[float, float]]]:
    """Give (label, both scores) of a case.

    A score is undefined (None) where neither reference nor segmentation has the label, and such a case says nothing about it. But for
    labels in ``painted`` it does: one of the models has painted them in a case that lacks them. For these, every case that lacks the
    label counts, with 1 for a model that left it out and 0 for one that painted it.
    """
    for label, old in before.items():
        if label not in after:
            continue
        new = after[label]
        if label in painted and (old or 0) == (new or 0) == 0 and None in (old, new):
            yield label, (1.0 if old is None else 0.0, 1.0 if new is None else 0.0)
        elif old is not None and new is not None:
            yield label, (old, new)


def _painted(before: Dice, after: Dice) -> Iterable[str]:
    """Give the labels that one model painted in a case that lacks them, and the other did not."""
    for label in before.keys() & after.keys():
        if {before[label], after[label]} == {None, 0}:
            yield label


def _patient(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Give both mean scores of one patient's cases."""
    return pairs[0] if len(pairs) == 1 else (_mean([old for old, _ in pairs]), _mean([new for _, new in pairs]))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
