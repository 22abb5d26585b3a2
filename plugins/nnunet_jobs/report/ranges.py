"""Makes the report's tables of ranges: for each quantity its median, its limits and the distribution between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_jobs.report.facts import LabelValue, Range, Summary, along, flat, intensities, number, sizes
from nnunet_jobs.report.figures import Bars, histogram, intensity_histogram

_OPENED = 240  # lines of a table at most
_DRAWN = 2  # number of usual ranges to each side within which intensities are drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeLine:
    """One quantity.

    Attributes:
        name: Of the quantity.
        median: Over the cases.
        low: Smallest value.
        high: Largest value.
        figure: Distribution of the cases between them.
        note: Text beside the name.
        swatch: Colour of a square before the name.
        wrong: Whether the value should not exist.
        cases: How many cases have it, if this is shown.
    """

    name: str
    median: str
    low: str
    high: str
    figure: Bars | str
    note: str = ""
    swatch: str = ""
    wrong: bool = False
    cases: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeTables:
    """Geometry, intensities of each channel, and sizes of each label."""

    geometry: Sequence[RangeLine]
    channels: Sequence[RangeLine]
    labels: Sequence[RangeLine]


def range_tables(
    tables: Mapping[str, Any], cases: Mapping[str, Summary], labels: Sequence[LabelValue], colours: Mapping[str, str], channels: int
) -> RangeTables:
    """Make the lines of the three tables."""
    names = tables.get("channel_names") or {}
    return RangeTables(
        geometry=_geometry(cases),
        channels=[_channel(str(names.get(str(place), f"channel {place}")), cases, place) for place in range(min(channels, _OPENED))],
        labels=_labels(cases, labels[:_OPENED], colours),
    )


def _geometry(cases: Mapping[str, Summary]) -> list[RangeLine]:
    pictures = flat(cases)
    axes = [axis for axis in range(3) if not pictures or max(along(cases, "shape", axis).values(), default=0) > 1]
    quantities = (("shape", "Pixels" if pictures else "Voxels"), ("spacing", "Spacing (mm)"))
    return [_line(f"{name} along {'xyz'[axis]}", _range(along(cases, key, axis))) for key, name in quantities for axis in axes]


def _channel(name: str, cases: Mapping[str, Summary], channel: int) -> RangeLine:
    known = intensities(cases, channel)
    lows, middles, highs = (_range({case: entry["percentiles"][place] for case, entry in known.items()}) for place in (0, 2, -1))
    # One case in other units would leave a single bar, so the picture covers only the usual range.
    reach = _DRAWN * (highs.median - lows.median)
    low, high = max(lows.low, lows.median - reach), min(highs.high, highs.median + reach)
    cut = [f"below {number(low)}"] * (low > lows.low) + [f"above {number(high)}"] * (high < highs.high)
    return RangeLine(
        name=name,
        note=f"not drawn: {' and '.join(cut)}" if cut else "",
        median=number(middles.median),
        low=number(lows.low),
        high=number(highs.high),
        figure=intensity_histogram(list(known.values()), low, high),
    )


def _labels(cases: Mapping[str, Summary], labels: Sequence[LabelValue], colours: Mapping[str, str]) -> list[RangeLine]:
    labelled = sum(summary.get("labels") is not None for summary in cases.values())
    lines = []
    for label in labels:
        known, fill = _range(sizes(cases, label.value)), colours[str(label.value)]
        cases_with = f"{len(known.values):,} of {labelled:,}"
        lines.append(_line(label.name, known, fill=fill, swatch=fill, wrong=not label.declared, cases=cases_with))
    return lines


def _range(values: Mapping[str, float]) -> Range:
    return Range(values=tuple(values.values()))


def _line(name: str, values: Range, *, fill: str | None = None, **more: Any) -> RangeLine:
    figure = histogram(values, fill=fill)
    return RangeLine(name=name, median=number(values.median), low=number(values.low), high=number(values.high), figure=figure, **more)
