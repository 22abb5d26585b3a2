"""The report's numbers: for each quantity its median, its ends and how the cases lie between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_jobs.report.facts import LabelValue, Range, Summary, along, flat, intensities, number, sizes
from nnunet_jobs.report.figures import histogram, intensity_histogram, swatch
from nnunet_jobs.report.html import heads, text

LINES = 12  # of a table; the others open on demand
_OPENED = 240
_DRAWN = 2  # intensities are drawn so many usual ranges to each side


def range_tables(
    tables: Mapping[str, Any], cases: Mapping[str, Summary], labels: Sequence[LabelValue], colours: Mapping[str, str], channels: int
) -> str:
    """Geometry, intensities of each channel, and sizes of each label."""
    names = tables.get("channel_names") or {}
    lines = [_channel(str(names.get(str(place), f"channel {place}")), cases, place) for place in range(min(channels, _OPENED))]
    right = ""
    if labels:
        unit = "in percent of the picture" if flat(cases) else "in ml"
        right = f'<h2 class="below">Labels <small>{unit}</small></h2>{_table(_labels(cases, labels[:_OPENED], colours), "labels", "Cases")}'
    return (
        f'<section class="pair"><div><h2>Geometry</h2>{_table(_geometry(cases), "quantities")}</div>'
        "<div><h2>Intensities <small>0.5 to 99.5 % of the voxels, each case with the same weight</small></h2>"
        f"{_table(lines, 'channels')}{right}</div></section>"
    )


def _table(lines: Sequence[str], what: str, *extra: str) -> str:
    head = f"{heads('')}{heads(*extra, 'Median', 'Smallest', kind='n')}{heads('')}{heads('Largest', kind='high')}"
    tables = [
        f'<div class="scroll"><table class="ranges"><tr>{head}</tr>{"".join(part)}</table></div>'
        for part in (lines[:LINES], lines[LINES:])
        if part
    ]
    if len(tables) > 1:
        tables[1] = f'<details class="rest"><summary>{len(lines) - LINES:,} more {what}</summary>{tables[1]}</details>'
    return "".join(tables)


def _geometry(cases: Mapping[str, Summary]) -> list[str]:
    pictures = flat(cases)
    axes = [axis for axis in range(3) if not pictures or max(along(cases, "shape", axis).values(), default=0) > 1]
    quantities = (("shape", "Pixels" if pictures else "Voxels"), ("spacing", "Spacing (mm)"))
    return [_line(f"{name} along {'xyz'[axis]}", "", _range(along(cases, key, axis))) for key, name in quantities for axis in axes]


def _channel(name: str, cases: Mapping[str, Summary], channel: int) -> str:
    known = intensities(cases, channel)
    lows, middles, highs = (_range({case: entry["percentiles"][place] for case, entry in known.items()}) for place in (0, 2, -1))
    # One case in other units would leave a single bar: the picture ends where the usual cases do.
    reach = _DRAWN * (highs.median - lows.median)
    low, high = max(lows.low, lows.median - reach), min(highs.high, highs.median + reach)
    cut = [f"below {number(low)}"] * (low > lows.low) + [f"above {number(high)}"] * (high < highs.high)
    label = text(name) + (f' <span class="none">not drawn: {" and ".join(cut)}</span>' if cut else "")
    return _cells(label, "", middles.median, lows.low, highs.high, intensity_histogram(list(known.values()), low, high))


def _labels(cases: Mapping[str, Summary], labels: Sequence[LabelValue], colours: Mapping[str, str]) -> list[str]:
    labelled = sum(summary.get("labels") is not None for summary in cases.values())
    lines = []
    for label in labels:
        known, fill = _range(sizes(cases, label.value)), colours[str(label.value)]
        name = text(label.name) if label.declared else f'<span class="bad">{text(label.name)}</span>'
        lines.append(_line(f"{swatch(fill)}{name}", f'<td class="n">{len(known.values):,} of {labelled:,}</td>', known, fill=fill))
    return lines


def _range(values: Mapping[str, float]) -> Range:
    return Range(values=tuple(values.values()))


def _line(name: str, extra: str, values: Range, *, fill: str | None = None) -> str:
    return _cells(name, extra, values.median, values.low, values.high, histogram(values, fill=fill))


def _cells(name: str, extra: str, median: float, low: float, high: float, figure: str) -> str:
    return (
        f'<tr><td>{name}</td>{extra}<td class="n">{number(median)}</td><td class="n">{number(low)}</td>'
        f'<td class="shape">{figure}</td><td class="high">{number(high)}</td></tr>'
    )
