"""Prepares what the templates draw as inline SVG: small histograms for table rows, and slices with label outlines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_jobs.report.facts import Range, share

BINS = 32
_WIDTH, _HEIGHT = 192, 28
_MIMES = ("image/png", "image/jpeg")
# Bright enough for dark images, and distinguishable for most colour-blind people; further colours are taken from the colour circle.
_COLOURS = ("#ff5c5c", "#35c4f0", "#ffd23f", "#5fd068", "#d78bff", "#ff9a3c", "#3fe0c5", "#ff8fc7", "#a5b4fc", "#c8e04a")
_GOLDEN_ANGLE = 137.508
_NARROWEST = 0.2  # share of a picture's cell; thinner slices are drawn wider than they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Bars over a base line.

    Attributes:
        path: Their outlines, as of an SVG path.
        fill: Their colour, the page's own if None.
        median: Where a line is drawn, from 0 to 1 of the width; none if None.
        width: Of the drawing, in pixels.
        height: Of the drawing, in pixels.
    """

    path: str
    fill: str | None = None
    median: float | None = None
    width: int = _WIDTH
    height: int = _HEIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A mid-slice in its true proportions, filling a square cell.

    Attributes:
        title: What it shows.
        mime: Of the image.
        data: The image in base64.
        width: Width in pixels.
        height: Height in pixels.
        across: Width in percent of the cell.
        down: Height in percent of the cell.
        outlines: A colour and an SVG path for each label value.
    """

    title: str
    mime: str
    data: str
    width: int
    height: int
    across: float
    down: float
    outlines: Sequence[tuple[str, str]]


def colour(place: int) -> str:
    """Return the colour of the n-th label value."""
    return _COLOURS[place] if place < len(_COLOURS) else f"hsl({place * _GOLDEN_ANGLE % 360:.0f} 85% 65%)"


def histogram(values: Range, *, fill: str | None = None) -> Bars | str:
    """How many cases have which value, from the smallest to the largest, with a line at the median. Words if there is nothing to draw."""
    low, high = values.low, values.high
    if not 0 < high - low < math.inf:
        return "the same in all cases" if len(values.values) > 1 else ""
    bins = _bins(values)
    counts = [0.0] * bins
    for value in values.values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    return bars(counts, fill=fill, median=(values.median - low) / (high - low))


def _bins(values: Range) -> int:
    """Return the number of bars: as many as the cases can fill, and at most one for each integer."""
    wanted = min(BINS, max(8, 2 * math.isqrt(len(values.values))))
    if all(value == int(value) for value in values.values):
        wanted = min(wanted, int(values.high - values.low) + 1)
    return wanted


def intensity_histogram(channels: Sequence[Mapping[str, Any]], low: float, high: float) -> Bars | str:
    """Combine the histograms of all cases, with equal weights, between two intensities; values outside are left out."""
    counts = [0.0] * BINS
    if not 0 < high - low < math.inf:
        return ""
    for channel in channels:
        start, stop = channel["percentiles"][0], channel["percentiles"][-1]
        shares = channel["histogram"]
        step = (stop - start) / len(shares)
        for place, part in enumerate(shares):
            _spread(counts, part, (start + place * step - low) / (high - low), (start + (place + 1) * step - low) / (high - low))
    return bars(counts)


def _spread(counts: list[float], part: float, begin: float, end: float) -> None:
    """Add a share that lies evenly between two places (0 to 1) to the bins that it covers."""
    first, last = begin * BINS, end * BINS
    if last - first < 1e-9:
        if 0 <= first <= BINS:
            counts[min(BINS - 1, int(first))] += part
        return
    for place in range(max(0, int(first)), min(BINS - 1, int(last)) + 1):
        counts[place] += part * max(0.0, min(last, place + 1) - max(first, place)) / (last - first)


def bars(counts: Sequence[float], *, fill: str | None = None, median: float | None = None) -> Bars:
    """Draw bars over a base line; every bar above zero is visible."""
    step = _WIDTH / max(1, len(counts))
    shapes = []
    for place, part in enumerate(share(counts)):
        if part > 0:
            height = max(2.0, part * (_HEIGHT - 2))
            shapes.append(f"M{place * step + 0.5:.1f} {_HEIGHT - 1}v-{height:.1f}h{step - 1:.1f}v{height:.1f}z")
    return Bars(path="".join(shapes), fill=fill, median=median)


def slice_picture(picture: Mapping[str, Any] | None, colours: Mapping[str, str], *, title: str) -> Slice | None:
    """A mid-slice with an outline in the colour of each label value; None where there is no picture."""
    if not picture or picture["mime"] not in _MIMES:
        return None
    width, height = (int(n) for n in picture["pixels"])
    across, down = (float(size) if float(size) > 0 else 1.0 for size in picture["size_mm"])
    largest = max(across, down)
    return Slice(
        title=title,
        mime=picture["mime"],
        data=str(picture["data"]),
        width=width,
        height=height,
        across=100 * max(_NARROWEST, across / largest),
        down=100 * max(_NARROWEST, down / largest),
        outlines=[(colours.get(value, "#fff"), str(path)) for value, path in picture["contours"].items()],
    )
