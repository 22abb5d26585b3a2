"""Replays years of nightly retraining for each policy: how often it promotes, how often wrongly, how soon a gain.

    python -m benchmarks.promotion [--years 20] [--cases 40] [--seed 1] [--policy if_better]

The score of a model on a case is quality + difficulty of the case + noise of (model, case, label), so a champion that
was lucky on the hold-out cases stays lucky on them. Three kinds of year: *equal*, where all models have the same
quality; *seeds*, where trainings differ by their seed alone; *gains*, where the recipe gains 2 points every 70 nights.
All figures except the means of errors are for one year.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "plugins"))

from nnunet_jobs.contract.steps.promotion import PROMOTE, PromotionPolicy  # noqa: E402
from nnunet_jobs.selection.gate.decision import decide  # noqa: E402
from nnunet_jobs.selection.gate.history import Record  # noqa: E402
from nnunet_jobs.selection.gate.scores import CaseScores  # noqa: E402

START = datetime(2026, 1, 1, tzinfo=UTC)
NIGHTS, WINDOW = 365, 70
LABELS = ("anterior", "posterior")
GAIN, QUALITY, DIFFICULTY = 0.02, 0.8, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is true in the replayed years, in Dice.

    Attributes:
        cases: Hold-out cases of the first night; another one comes every ten nights.
        spread: Standard deviation of the quality between trainings.
        noise: Standard deviation of a score beyond quality and difficulty.
        gains: Gain of the recipe by night.
    """

    cases: int
    spread: float
    noise: float
    gains: Mapping[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class Model:
    """A model of a true quality, and the scores that it has shown so far."""

    quality: float
    scores: list[tuple[float, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """One promotion: its night, the true gain, the observed one, and the one that the gate expected."""

    night: int
    true: float
    observed: float
    expected: float


def replay(world: World, policy: PromotionPolicy, draw: random.Random) -> list[Promoted]:
    """Replay one year of nights."""
    difficulty: list[tuple[float, ...]] = []
    level = QUALITY
    champion = Model(level + draw.gauss(0, world.spread))
    records: list[Record] = []
    found = []
    for night in range(NIGHTS):
        wanted = world.cases + night // 10
        difficulty += [tuple(draw.gauss(0, DIFFICULTY) for _ in LABELS) for _ in range(wanted - len(difficulty))]
        level += world.gains.get(night, 0.0)
        challenger = Model(level + draw.gauss(0, world.spread))
        at = START + timedelta(days=night)
        for model in (champion, challenger):
            for hardness in difficulty[len(model.scores) :]:
                model.scores.append(tuple(min(1.0, max(0.0, model.quality + hard + draw.gauss(0, world.noise))) for hard in hardness))
        answer = decide(policy, list(_cases(champion, challenger, world)), records, at)
        records.append(answer.record)
        if answer.decision == "promote" and answer.compared is not None and answer.expected_gain is not None:
            true = challenger.quality - champion.quality
            found.append(Promoted(night=night, true=true, observed=answer.compared.gain, expected=answer.expected_gain))
            champion = challenger
    return found


def _cases(champion: Model, challenger: Model, world: World) -> Iterable[CaseScores]:
    for number, (old, new) in enumerate(zip(champion.scores, challenger.scores, strict=True)):
        since = START + timedelta(days=max(0, number - world.cases + 1) * 10, seconds=-1)
        scores = {"champion": dict(zip(LABELS, old, strict=True)), "challenger": dict(zip(LABELS, new, strict=True))}
        yield CaseScores(case=str(number), group=str(number), since=since, anchor={}, **scores)


def row(name: str, policy: PromotionPolicy, world: World, years: int, draw: random.Random) -> str:
    """Replay the years of one world and give its line of the table."""
    replayed = [replay(world, policy, draw) for _ in range(years)]
    promoted = [one for year in replayed for one in year]
    nights = []
    missed = 0
    for year in replayed:
        for begin in world.gains:
            hits = [one.night - begin + 1 for one in year if begin <= one.night < begin + WINDOW]
            nights += hits[:1]
            missed += not hits
    worse = sum(one.true < 0 for one in promoted) / years

    def mean(values: Iterable[float]) -> str:
        points = [100 * value for value in values]
        return f"{statistics.fmean(points):8.2f}" if points else "       -"

    off = mean(abs(one.expected - one.true) for one in promoted)
    optimism, uncorrected = mean(one.expected - one.true for one in promoted), mean(one.observed - one.true for one in promoted)
    late = f"{statistics.median(nights):6.0f} {100 * missed / (missed + len(nights)):6.1f} %" if nights or missed else "     -        -"
    return f"{policy.promote:13} {name:6} {len(promoted) / years:9.2f} {worse:7.3f} {off} {optimism} {uncorrected} {late}"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=20)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spread", type=float, default=0.006, help="between trainings, in Dice")
    parser.add_argument("--noise", type=float, default=0.021, help="of a model, case and label, in Dice")
    parser.add_argument("--policy", action="append", choices=PROMOTE)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    print(f"{arguments.years} years, {arguments.cases} hold-out cases and one more every ten nights; errors and optimism in points of Dice")
    print("policy        year   promoted   worse  |error| optimism uncorrected   nights  missed")
    for promote in arguments.policy or ("if_better", "if_not_worse", "always"):
        worlds = {
            "equal": World(cases=arguments.cases, spread=0.0, noise=arguments.noise),
            "seeds": World(cases=arguments.cases, spread=arguments.spread, noise=arguments.noise),
            "gains": World(
                cases=arguments.cases, spread=arguments.spread, noise=arguments.noise,
                gains=dict.fromkeys(range(WINDOW, NIGHTS - WINDOW, WINDOW), GAIN),
            ),
        }  # fmt: skip
        for name, world in worlds.items():
            print(row(name, PromotionPolicy(promote=promote), world, arguments.years, draw), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
