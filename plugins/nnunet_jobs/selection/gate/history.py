"""Earlier decisions of one dataset, and what they tell about tonight's: spent budget, spread between trainings, the champion's luck."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Self

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.promotion import PromotionPolicy
from nnunet_jobs.selection.gate.scores import read_time

SCHEMA = 1
_YEAR = timedelta(days=365)
_LOOK_BACK = 40
"""Number of earlier decisions that tell how much trainings differ."""
_USUAL_SPREAD = 0.006
"""Spread between trainings that differ by their seed alone, in Dice, until this dataset has shown its own."""
_USUAL_WEIGHT = 8
"""Number of nights that the usual spread counts for."""
_CHANGE = 1 / 100
"""Probability that data or recipe change the expected Dice from one night to the next."""
_BOUNDS = {"gain": (-1, 1), "noise": (0, 10), "luck": (-10, 10), "spent": (0, 1), "patients": (0, 1_000_000_000)}
"""Smallest and largest value of a record's numbers; no decision writes others."""
_LEAST_VARIANCE = 1e-12
"""Smallest variance of a night's level that is believed, so that nights without any noise do not divide by zero."""
_NEGLIGIBLE, _STRETCHES = 1e-4, 12
"""Stretches of nights that are less probable than this share of all, or beyond this number, are left out."""
_SIZE_OF_CHANGE = 0.02
"""Standard deviation of such a change, in Dice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What later decisions need of one decision.

    Attributes:
        at: When it was made, ISO time.
        decision: ``promote``, ``keep`` or ``ask``.
        promoted: The challenger became the champion, by the decision or, after ``ask``, by a person.
        approved: A person approved the challenger, which makes it the anchor of ``if_not_worse``.
        gain: Observed gain in Dice; None where nothing could be compared.
        noise: Standard error of one model's mean Dice, from the chance of single cases; None likewise.
        patients: Number of patients compared.
        luck: Expected part of the challenger's mean Dice that was luck on these cases.
        spent: Part of the error budget that the decision used.
    """

    at: str
    decision: str
    promoted: bool = False
    approved: bool = False
    gain: float | None = None
    noise: float | None = None
    patients: int = 0
    luck: float = 0.0
    spent: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, the inverse of :meth:`from_json`."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read a record; fields that a newer version added are left out.

        Raises:
            ConfigError: It is no record.
        """
        if not isinstance(data, dict) or not {"at", "decision"} <= data.keys():
            raise ConfigError(field="history", value=data, problem="must hold the records of earlier answers")
        known = {item.name for item in fields(cls)}
        record = cls(**{name: value for name, value in data.items() if name in known})
        read_time(record.at, where="history:", field="at")
        for name, (least, most) in _BOUNDS.items():
            value = getattr(record, name)
            optional = name in ("gain", "noise") and value is None
            if not optional and (isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most):
                raise ConfigError(where="history:", field=name, value=value, problem=f"must be a number from {least} to {most}")
        for name in ("promoted", "approved"):
            if not isinstance(getattr(record, name), bool):
                raise ConfigError(where="history:", field=name, value=getattr(record, name), problem="must be true or false")
        return record

    @property
    def time(self) -> datetime:
        """When the decision was made."""
        return datetime.fromisoformat(self.at)


class History:
    """Earlier decisions of a dataset, oldest first."""

    def __init__(self, records: Iterable[Record], at: datetime) -> None:
        self.at = at
        self.records = sorted((record for record in records if record.time <= at), key=lambda record: record.time)
        self.since_promotion = self._after(lambda record: record.promoted)

    def _after(self, which: Any) -> list[Record]:
        last = max((number for number, record in enumerate(self.records) if which(record)), default=-1)
        return self.records[last + 1 :]

    @property
    def last_decision(self) -> datetime | None:
        """When the last decision was made."""
        return self.records[-1].time if self.records else None

    @property
    def last_promotion(self) -> Record | None:
        """The decision that made today's champion; None where it is not on record."""
        return next((record for record in reversed(self.records) if record.promoted), None)

    def error_share(self, policy: PromotionPolicy) -> float:
        """Probability of an error by chance that tonight's decision may have.

        The yearly budget is spread evenly over the declared number of runs. Where more runs were made than declared, each further one
        takes half of what is left of the last 365 days, so the sum never exceeds the budget.
        """
        budget = policy.error_budget_per_year
        spent = math.fsum(record.spent for record in self.records if self.at - record.time < _YEAR)
        even = budget / policy.runs_per_year
        return min(0.5, even if spent + even <= budget * (1 + 1e-9) else max(budget - spent, 0.0) / 2)

    def champions_luck(self, patients: int) -> float:
        """Expected part of the champion's mean Dice that is luck. Patients that came since then dilute it, nobody chose by them."""
        made = self.last_promotion
        return made.luck * min(1.0, made.patients / patients) if made and patients else 0.0

    def anchor_gain(self) -> float:
        """Observed gains of all promotions since a person approved a model: what the champion is ahead of, or behind, the anchor."""
        return math.fsum(record.gain or 0.0 for record in self._after(lambda record: record.approved) if record.promoted)

    def _levels(self) -> list[tuple[float, float]]:
        """(level, noise) of earlier challengers, relative to today's champion: each promotion moves the point of reference."""
        found: list[tuple[float, float]] = []
        reference = 0.0
        for record in reversed(self.records[-_LOOK_BACK:]):
            if record.promoted and record.gain is None:  # a champion that nobody compared: what was before cannot be related to it
                break
            if record.gain is None or record.noise is None:
                continue
            if record.promoted:  # today's champion is this challenger
                reference -= record.gain
            found.append((reference + record.gain, record.noise))
        return found[::-1]

    def seed_spread(self, policy: PromotionPolicy) -> float:
        """Standard deviation of the true Dice between trainings of the same recipe.

        Estimated from differences of successive nights, which a single change of data or recipe hardly touches, less the chance of
        single cases; the usual spread counts for a few nights, so that the first ones are not overrated.
        """
        if policy.seed_spread is not None:
            return policy.seed_spread
        levels = self._levels()
        steps = [((new - old) ** 2 - noise**2 - before**2) / 2 for (old, before), (new, noise) in pairwise(levels)]
        total = math.fsum(steps) + _USUAL_WEIGHT * _USUAL_SPREAD**2
        return math.sqrt(max(total / (len(steps) + _USUAL_WEIGHT), 0.0))

    def luck(self, gain: float, noise: float, policy: PromotionPolicy) -> float:
        """Expected part of the challenger's mean Dice that is luck on these cases, given what earlier challengers reached.

        Args:
            gain: Observed gain of tonight's challenger.
            noise: Standard error of its mean Dice.
            policy: Says the spread between trainings, where it was measured.

        A Bayesian change-point model (Adams and MacKay 2007, arXiv 0710.3742): the expected Dice of the recipe is constant until it
        changes, trainings scatter around it, and cases add their noise. What lies above the expected Dice is divided between training
        and chance in proportion to their variances; a change of the recipe explains it where that is the more probable.
        """
        spread = self.seed_spread(policy) ** 2
        stretches: list[_Stretch] = [(1.0, 0.0, _SIZE_OF_CHANGE**2)]
        for level, error in self._levels():
            stretches = _updated(stretches, level, max(spread + error * error, _LEAST_VARIANCE))
        total = lucky = 0.0
        for weight, expected, variance in _after_change(stretches):
            around = variance + spread + noise * noise
            fit = weight * _density(gain - expected, around)
            total += fit
            lucky += fit * (gain - expected) * noise * noise / around
        return lucky / total if total else 0.0


_Stretch = tuple[float, float, float]
"""Nights without a change: how probable it is that they go on until tonight, the expected Dice in them, and its variance."""


def _after_change(stretches: Sequence[_Stretch]) -> list[_Stretch]:
    """Give the stretches of the next night: each goes on, or a change begins a new one around what was expected before."""
    mean = math.fsum(weight * expected for weight, expected, _ in stretches)
    going_on = [(weight * (1 - _CHANGE), expected, variance) for weight, expected, variance in stretches]
    return [*going_on, (_CHANGE, mean, _SIZE_OF_CHANGE**2)]


def _updated(stretches: Sequence[_Stretch], level: float, noise: float) -> list[_Stretch]:
    """Take one night's level, whose variance is ``noise``, into account."""
    found = []
    for weight, expected, variance in _after_change(stretches):
        share = variance / (variance + noise)
        away = level - expected
        found.append((weight * _density(away, variance + noise), expected + share * away, variance * (1 - share)))
    total = math.fsum(weight for weight, _, _ in found)
    if not total:
        return [(1.0, level, noise)]
    kept = [(weight / total, expected, variance) for weight, expected, variance in found if weight > _NEGLIGIBLE * total]
    return sorted(kept, reverse=True)[:_STRETCHES]


def _density(distance: float, variance: float) -> float:
    return math.exp(-distance * distance / (2 * variance)) / math.sqrt(variance)
