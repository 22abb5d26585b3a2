"""Makes the page on which a person reviews a dataset: faults, unusual cases, numbers, and pictures of the cases.

It is one file without scripts, fonts or links: it can be mailed, archived, and shown under a strict Content-Security-Policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.report.facts import Summary, flat, label_size, label_values, number, unusual
from nnunet_jobs.report.figures import colour, slice_picture
from nnunet_jobs.report.html import render
from nnunet_jobs.report.ranges import range_tables

_PICTURES, _PICTURE_CHARS = 240, 2_500_000
_SIZES = 12  # labels whose sizes are in the table of all cases
_SPLITS = {"train": "for training", "holdout": "held out", "test": "without a label"}


def render_report(
    *,
    title: str,
    tables: Mapping[str, Any],
    cases: Mapping[str, Summary],
    faults: Sequence[Fault],
    seconds: float | None = None,
) -> str:
    """Render the whole page.

    Args:
        title: The dataset's name.
        tables: ``channel_names`` and ``labels`` as in ``dataset.json``.
        cases: Case id to :func:`~nnunet_jobs.dataset.summary.summarise_case`, with the case's ``split`` beside it where
            it is known; an empty mapping for a case that could not be read.
        faults: All faults, including warnings.
        seconds: Duration of the check in seconds.
    """
    page = _Page(tables=tables, cases=cases, faults=faults)
    numbers = range_tables(tables, page.cases, page.labels, page.colours, page.channels)
    return render("report.html", title=title, page=page, numbers=numbers, seconds=seconds)


class _Page:
    """Holds what ``templates/report.html`` shows."""

    def __init__(self, *, tables: Mapping[str, Any], cases: Mapping[str, Summary], faults: Sequence[Fault]) -> None:
        self.tables, self.listed = tables, dict(cases)
        self.cases = {case: summary for case, summary in sorted(cases.items()) if summary.get("shape")}
        self.faults = sorted(
            faults, key=lambda fault: (fault.severity != "error", fault.case is not None, fault.code, fault.case or "", fault.file or "")
        )
        self.labels = label_values(tables, self.cases)
        self.colours = {str(label.value): colour(place) for place, label in enumerate(self.labels)}
        self.unusual = unusual(tables, self.cases)
        self.outliers: dict[str, list[str]] = {}
        for entry in self.unusual:
            for case, value in entry.cases.items() if not entry.group else ():
                self.outliers.setdefault(case, []).append(f"{entry.what} {value}".strip())
        self.wrong = {fault.case for fault in faults if fault.case and fault.severity == "error"}
        self.doubtful = {fault.case for fault in faults if fault.case and fault.severity != "error"} | set(self.outliers)
        self.chosen = self._choose()
        self.anchors = {case: f"case{place}" for place, case in enumerate(self.chosen)}
        self.channels = len(tables.get("channel_names") or {}) or max((len(s["channels"]) for s in self.cases.values()), default=0)
        names = tables.get("channel_names") or {}
        self.channel_names = ", ".join(map(str, names.values()))
        self.flat = flat(self.cases)
        self.sized = self.labels[:_SIZES]
        self.unread = len(self.listed) - len(self.cases)
        tally = Counter((fault.severity, fault.code) for fault in self.faults)
        self.tally = [(severity, code, count) for (severity, code), count in tally.items()]
        seen = {value for case in self.chosen for value in (self.cases[case].get("picture") or {}).get("contours", {})}
        self.outlined = [label for label in self.labels if str(label.value) in seen]

    @property
    def verdict(self) -> tuple[str, str]:
        """Return the verdict's class in the style sheet, and its text."""
        errors = sum(fault.severity == "error" for fault in self.faults)
        warnings = len(self.faults) - errors
        look = " · ".join(_count(n, what) for n, what in ((warnings, "warning"), (len(self.outliers), "unusual case")) if n)
        if errors:
            return "bad", f"Not usable: {_count(errors, 'error')}" + (f" in {_count(len(self.wrong), 'case')}" if self.wrong else "")
        return ("look", f"Usable · {look}") if look else ("good", "Usable · nothing stands out")

    @property
    def splits(self) -> list[tuple[int, str]]:
        """Return the number of cases of each split."""
        counts = Counter(str(summary["split"]) for summary in self.listed.values() if summary.get("split"))
        return [(counts[key], what) for key, what in _SPLITS.items() if counts[key]]

    @property
    def shown_how(self) -> str:
        """Say which slices the pictures show, and from which side."""
        if self.flat:
            return ""
        views = Counter(view for case in self.chosen if (view := (self.cases[case].get("picture") or {}).get("view")))
        return "the slice with most label voxels" + (f", {' or '.join(views)}, patient's right on the left" if views else ", as stored")

    def _choose(self) -> list[str]:
        """Choose cases for the contact sheet: those to look at first, then others, evenly spaced if there are too many."""
        first = [case for case in self.cases if case in self.wrong]
        first += [case for case in self.cases if case in self.doubtful and case not in self.wrong]
        rest = [case for case in self.cases if case not in self.wrong and case not in self.doubtful]
        room = max(_PICTURES - len(first), _PICTURES // 2)
        if len(rest) > room:
            rest = [rest[place * len(rest) // room] for place in range(room)]
        chosen, spent = list[str](), 0
        for case in [*first[: _PICTURES - len(rest)], *rest]:
            picture = self.cases[case].get("picture") or {}
            spent += len(picture.get("data", "")) + sum(map(len, picture.get("contours", {}).values()))
            if spent > _PICTURE_CHARS:
                break
            chosen.append(case)
        return chosen

    def figures(self) -> Iterator[dict[str, Any]]:
        """Yield the pictures of the contact sheet."""
        for case in self.chosen:
            summary = self.cases[case]
            kind, words = "", _shape(summary)
            if case in self.wrong:
                kind, words = "bad", ", ".join(self._codes(case))
            elif case in self.doubtful:
                kind, words = "look", "; ".join(self.outliers.get(case) or self._codes(case))
            picture = slice_picture(summary.get("picture"), self.colours, title=case)
            yield {"case": case, "kind": kind, "words": words, "picture": picture}

    def _codes(self, case: str) -> list[str]:
        return sorted({fault.code for fault in self.faults if fault.case == case})

    def rows(self, limit: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of the table of cases, up to its limit."""
        for case, summary in list(self.cases.items())[:limit]:
            sizes = [number(label_size(summary, label.value)) for label in self.sized]
            yield {
                "case": case, "split": summary.get("split", ""), "shape": _shape(summary), "spacing": _spacing(summary), "sizes": sizes,
            }  # fmt: skip


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _shape(summary: Summary) -> str:
    shape = [int(n) for n in summary["shape"]]
    return " × ".join(f"{n}" for n in shape if n > 1 or min(shape) > 1) or "1"


def _spacing(summary: Summary) -> str:
    steps = [step for step in summary.get("spacing") or () if step is not None]
    return " × ".join(f"{step:.3g}" for step in steps)
