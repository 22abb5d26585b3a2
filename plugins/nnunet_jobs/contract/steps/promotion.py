"""Defines when a new model replaces the champion, by a policy that an operator, a dataset file and ``python -m nnunet_jobs gate`` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnunet_jobs.contract.steps.base import StepParams

PROMOTE = ("if_better", "if_not_worse", "ask", "never", "always")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionPolicy(StepParams):
    """Says when a challenger is promoted. Dice and its differences are in 0..1, so 0.01 is one Dice point.

    Attributes:
        promote: ``if_better`` promotes a model that is better beyond chance; ``if_not_worse`` one that is at most
            ``margin`` worse than the anchor, the last model that a person approved; ``ask`` leaves it to a person;
            ``never`` and ``always`` ignore the scores.
        error_budget_per_year: Number of promotions a year that may happen by chance alone. It is divided among the runs.
        runs_per_year: Number of decisions a year over which the budget is spread.
        min_gain: Gain in Dice that ``if_better`` must show, beyond chance.
        max_label_loss: Largest loss in mean Dice of any single label.
        margin: For ``if_not_worse``, the loss in Dice against the anchor that is accepted.
        min_dice: Mean Dice that the first model of a dataset, which has no champion to beat, must reach; any if None.
        seed_spread: Standard deviation in Dice between trainings that differ only by their seed, if it was measured.
            If None, it is estimated from earlier decisions.
    """

    step: ClassVar[str] = "gate"

    promote: str = "if_better"
    error_budget_per_year: float = 0.05
    runs_per_year: float = 365.0
    min_gain: float = 0.0
    max_label_loss: float = 0.01
    margin: float = 0.01
    min_dice: float | None = None
    seed_spread: float | None = None

    def _check(self) -> None:
        self.require(self.promote in PROMOTE, "promote", f"must be one of {', '.join(PROMOTE)}")
        self.require(0 < self.error_budget_per_year <= 100, "error_budget_per_year", "must be more than 0 and at most 100")
        self.require(1 <= self.runs_per_year <= 100_000, "runs_per_year", "must be 1 to 100000")
        for name in ("min_gain", "max_label_loss", "margin"):
            self.require(0 <= getattr(self, name) <= 1, name, "must be 0 to 1")
        for name in ("min_dice", "seed_spread"):
            value = getattr(self, name)
            self.require(value is None or 0 <= value <= 1, name, "must be 0 to 1")
