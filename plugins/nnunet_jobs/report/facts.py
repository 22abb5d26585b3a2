"""Computes the report's numbers of a dataset: ranges over all cases, names of label values, and unusual cases."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Summary = Mapping[str, Any]

_ENOUGH = 8  # cases; with fewer, "unlike the others" means nothing
_GROUP = 0.05  # share of the cases; if more differ, it is on purpose
_SPREAD = 5 * 1.4826  # median absolute deviations that count as far away; 1.4826 of them are a standard deviation of a normal distribution
# Least factor from the median at which a value counts as unusual, even if the others are almost equal.
_VOLUME, _SPACING, _SHAPE, _RANGE = 3.0, 1.5, 2.0, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelValue:
    """A value of the label images: its name (of the regions that hold it, for regions) and whether any label declares it."""

    value: int
    name: str
    declared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusual:
    """One quantity in which some cases are unlike the others.

    Attributes:
        what: The quantity, such as ``spacing along z``.
        usual: What the others have, with its unit.
        cases: Case to its own value.
        group: Whether they are too many for outliers and form a separate group.
    """

    what: str
    usual: str
    cases: Mapping[str, str]
    group: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Values of one quantity over the cases, those that are known."""

    values: tuple[float, ...]

    @property
    def low(self) -> float:
        """Return the smallest value; NaN if there is none."""
        return min(self.values, default=math.nan)

    @property
    def high(self) -> float:
        """Return the largest value; NaN if there is none."""
        return max(self.values, default=math.nan)

    @property
    def median(self) -> float:
        """Return the median; NaN if there is no value."""
        return statistics.median(self.values) if self.values else math.nan


def label_values(tables: Mapping[str, Any], cases: Mapping[str, Summary]) -> list[LabelValue]:
    """Return every declared or found value except the background, in order."""
    names: dict[int, list[str]] = {}
    for name, entry in (tables.get("labels") or {}).items():
        for value in entry if isinstance(entry, list | tuple) else [entry]:
            names.setdefault(int(value), []).append(str(name))
    found = {int(value) for summary in cases.values() for value in summary.get("labels") or {}}
    return [
        LabelValue(value=value, name=", ".join(names.get(value, [f"value {value}, not declared"])), declared=value in names)
        for value in sorted({*names, *found} - {0})
    ]


def flat(cases: Mapping[str, Summary]) -> bool:
    """Whether these are pictures rather than volumes, so that label sizes are shares of the picture."""
    shapes = [summary["shape"] for summary in cases.values() if summary.get("shape")]
    return bool(shapes) and all(min(shape) <= 1 for shape in shapes)


def label_size(summary: Summary, value: int) -> float | None:
    """Return the size of a label in one case: millilitres, or percent of the area for pictures; None if it is not known."""
    entry = (summary.get("labels") or {}).get(str(value))
    if entry is None:
        return None
    if min(summary["shape"]) <= 1:
        return 100 * float(entry["voxels"]) / max(1, math.prod(summary["shape"]))
    return None if entry["ml"] is None else float(entry["ml"])


def sizes(cases: Mapping[str, Summary], value: int) -> dict[str, float]:
    """Return the size of a label in each case that has it."""
    return {case: size for case, summary in cases.items() if (size := label_size(summary, value)) is not None}


def along(cases: Mapping[str, Summary], key: str, axis: int) -> dict[str, float]:
    """Return ``shape`` or ``spacing`` of each case along an axis."""
    return {
        case: float(summary[key][axis])
        for case, summary in cases.items()
        if len(summary.get(key) or ()) > axis and summary[key][axis] is not None
    }


def intensities(cases: Mapping[str, Summary], channel: int) -> dict[str, Mapping[str, Any]]:
    """Return the intensity statistics of a channel in each case that has them."""
    return {
        case: summary["channels"][channel]
        for case, summary in cases.items()
        if len(summary.get("channels") or ()) > channel and summary["channels"][channel]
    }


def unusual(tables: Mapping[str, Any], cases: Mapping[str, Summary]) -> list[Unusual]:
    """Return unusual cases by quantity. These are hints for people; nothing depends on them.

    A value is far away when its logarithm is more than five standard deviations (by the median absolute deviation) from the median,
    and it is several times as large or small. More than one case in twenty are a separate group instead of outliers.
    """
    found = list[Unusual]()

    def note(values: Mapping[str, float], factor: float, what: str, unit: str) -> None:
        far = _far(values, factor)
        if far:
            usual = f"{number(Range(values=tuple(values.values())).median)}{unit}"
            group = len(far) > max(1, _GROUP * len(values))
            found.append(Unusual(what=what, usual=usual, cases={case: f"{number(values[case])}{unit}" for case in far}, group=group))

    unit = " %" if flat(cases) else " ml"
    labelled = [case for case, summary in cases.items() if summary.get("labels") is not None]
    for label in label_values(tables, cases):
        present = sizes(cases, label.value)
        note(present, _VOLUME, f"size of {label.name}", unit)
        missing = [case for case in labelled if case not in present]
        if label.declared and missing and len(labelled) >= _ENOUGH and len(missing) <= _GROUP * len(labelled):
            found.append(Unusual(what=f"no {label.name}", usual="in almost every case", cases=dict.fromkeys(missing, "")))
    for axis, name in enumerate("xyz"):
        note(along(cases, "spacing", axis), _SPACING, f"spacing along {name}", " mm")
    for axis, name in enumerate("xyz"):
        note(along(cases, "shape", axis), _SHAPE, f"voxels along {name}", "")
    names = tables.get("channel_names") or {}
    for channel in range(max((len(summary.get("channels") or ()) for summary in cases.values()), default=0)):
        name = str(names.get(str(channel), f"channel {channel}"))
        known = intensities(cases, channel)
        spans = {case: entry["percentiles"][-1] - entry["percentiles"][0] for case, entry in known.items()}
        note({case: span for case, span in spans.items() if span > 0}, _RANGE, f"intensity range of {name}", "")
        constant = [case for case, entry in known.items() if entry["min"] == entry["max"]]
        if constant:
            values = {case: number(known[case]["min"]) for case in constant}
            found.append(Unusual(what=f"{name} is the same everywhere", usual="a picture", cases=values))
    return found


def _far(values: Mapping[str, float], factor: float) -> list[str]:
    logs = {case: math.log(value) for case, value in values.items() if 0 < value < math.inf}
    if len(logs) < _ENOUGH:
        return []
    middle = statistics.median(logs.values())
    spread = statistics.median(abs(value - middle) for value in logs.values())
    limit = max(math.log(factor), _SPREAD * spread)
    return [case for case, value in logs.items() if abs(value - middle) >= limit]


def number(value: float | None) -> str:
    """Format a number with three significant digits or more, without an exponent if possible."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        return f"{value:.2e}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def share(counts: Iterable[float]) -> Sequence[float]:
    """Return counts as fractions of the largest."""
    known = list(counts)
    top = max(known, default=0.0)
    return [count / top if top > 0 else 0.0 for count in known]
