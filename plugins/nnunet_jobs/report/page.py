"""The page on which a person judges a dataset at a glance: what is wrong, what looks unlike the rest, numbers, and every case's picture.

One file without scripts, fonts or links to anywhere: it can be mailed, archived, and shown under a strict Content-Security-Policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.report.facts import Summary, flat, label_size, label_values, number, unusual
from nnunet_jobs.report.figures import colour, slice_picture, swatch
from nnunet_jobs.report.html import heads, items, more, text
from nnunet_jobs.report.ranges import range_tables
from nnunet_jobs.report.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_FAULTS, _NOTES, _NAMED, _ROWS, _LEGEND = 300, 60, 8, 2_000, 30  # lines of each table at most
_PICTURES, _PICTURE_CHARS = 240, 2_500_000
_LARGE = 24  # so many pictures at most are shown larger
_SPLITS = {"train": "for training", "holdout": "held out", "test": "without a label"}


def render_report(
    *,
    title: str,
    tables: Mapping[str, Any],
    cases: Mapping[str, Summary],
    faults: Sequence[Fault],
    seconds: float | None = None,
) -> str:
    """The whole page.

    Args:
        title: the dataset's name. tables: ``channel_names`` and ``labels`` as in ``dataset.json``.
        cases: case id to :func:`~nnunet_jobs.dataset.summary.summarise_case`, with the case's ``split`` beside it where it is known;
            an empty mapping for a case that could not be read.
        faults: all of them, warnings too. seconds: that the check took.
    """
    page = _Page(tables=tables, cases=cases, faults=faults)
    done = f" Checked in {seconds:.1f} s." if seconds is not None else ""
    body = "\n".join(
        part for part in (page.head(title), page.fault_list(), page.unlike(), page.numbers(), page.sheet(), page.rows()) if part
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{text(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><main>\n{body}\n<footer>Pictures are for orientation, not for diagnosis.{done}</footer>\n</main></body></html>\n"
    )


class _Page:
    """The sections, and what they share."""

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

    # --- what is said first -------------------------------------------------------------------------------------
    def head(self, title: str) -> str:
        errors = sum(fault.severity == "error" for fault in self.faults)
        warnings = len(self.faults) - errors
        look = " · ".join(_count(n, what) for n, what in ((warnings, "warning"), (len(self.outliers), "unusual case")) if n)
        if errors:
            kind, verdict = (
                "bad",
                f"Not usable: {_count(errors, 'error')}" + (f" in {_count(len(self.wrong), 'case')}" if self.wrong else ""),
            )
        elif look:
            kind, verdict = "look", f"Usable · {look}"
        else:
            kind, verdict = "good", "Usable · nothing stands out"
        splits = Counter(str(summary["split"]) for summary in self.listed.values() if summary.get("split"))
        names = self.tables.get("channel_names") or {}
        facts = [f"<b>{len(self.listed):,}</b> {'case' if len(self.listed) == 1 else 'cases'}"]
        facts += [f"<b>{splits[key]:,}</b> {what}" for key, what in _SPLITS.items() if splits[key]]
        facts.append(
            f"<b>{self.channels}</b> {'channel' if self.channels == 1 else 'channels'}: {text(', '.join(map(str, names.values())))}"
        )
        facts.append(f"<b>{len(self.labels)}</b> {'label' if len(self.labels) == 1 else 'labels'} beside background")
        if unread := len(self.listed) - len(self.cases):
            facts.append(f'<b class="bad">{unread:,}</b> without a readable image')
        return (
            f'<header><div><h1>{text(title)}</h1><ul class="facts">{items(facts)}</ul></div>'
            f'<div class="verdict {kind}">{verdict}</div></header>'
        )

    def fault_list(self) -> str:
        if not self.faults:
            return ""
        tally = Counter((fault.severity, fault.code) for fault in self.faults)
        counts = [f'<b class="{_kind(severity)}">{count:,} ×</b> <code>{text(code)}</code>' for (severity, code), count in tally.items()]
        lines = "".join(
            f'<tr><td class="{_kind(fault.severity)}">{text(fault.severity)}</td><td><code>{text(fault.code)}</code></td>'
            f'<td class="wrap">{self._link(fault.case)}</td><td class="wrap file">{text(fault.file or "")}</td>'
            f'<td class="message">{text(fault.message, 1_000)}</td></tr>'
            for fault in self.faults[:_FAULTS]
        )
        kind, first = _kind(self.faults[0].severity), heads("Severity", "Code", "Case", "File", "What is wrong, and the mend")
        return (
            f'<section class="{kind}"><h2>{"Faults" if kind == "bad" else "Warnings"}</h2>'
            + (f'<ul class="tally">{items(counts)}</ul>' if len(self.faults) > 3 else "")
            + f'<div class="scroll"><table><tr>{first}</tr>{lines}</table></div>'
            + more(len(self.faults), _FAULTS, "faults; the job's failure.json has all errors")
            + "</section>"
        )

    def unlike(self) -> str:
        if not self.unusual:
            return ""
        lines = ""
        for entry in sorted(self.unusual, key=lambda entry: entry.group)[:_NOTES]:
            named = [f"{self._link(case)} {text(value)}".strip() for case, value in list(entry.cases.items())[:_NAMED]]
            named += [f"and {len(entry.cases) - _NAMED:,} more"] if len(entry.cases) > _NAMED else []
            about = ' <span class="none">a group of its own</span>' if entry.group else ""
            lines += (
                f'<tr><td class="wrap">{text(entry.what)}{about}</td><td class="n">{text(entry.usual)}</td>'
                f'<td class="n">{len(entry.cases):,}</td><td class="message"><ul class="named">{items(named)}</ul></td></tr>'
            )
        first = f"{heads('Quantity')}{heads('Usual', 'Cases', kind='n')}{heads('Those that differ')}"
        return (
            f'<section class="{"look" if self.outliers else ""}"><h2>Unlike the others '
            "<small>hints, not faults: look whether they are meant to be so</small></h2>"
            f'<div class="scroll"><table class="notes"><tr>{first}</tr>{lines}</table></div></section>'
        )

    def numbers(self) -> str:
        return range_tables(self.tables, self.cases, self.labels, self.colours, self.channels) if self.cases else ""

    # --- pictures -----------------------------------------------------------------------------------------------
    def _choose(self) -> list[str]:
        """Cases for the contact sheet: what needs a look first, then the others, evenly over the dataset when there are too many."""
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

    def sheet(self) -> str:
        if not self.chosen:
            return ""
        seen = {value for case in self.chosen for value in (self.cases[case].get("picture") or {}).get("contours", {})}
        shown = [label for label in self.labels if str(label.value) in seen]
        legend = [f"{swatch(self.colours[str(label.value)])}{text(label.name, 80)}" for label in shown[:_LEGEND]]
        if len(shown) > _LEGEND:
            legend.append(f"and {len(shown) - _LEGEND} more")
        views = Counter(view for case in self.chosen if (view := (self.cases[case].get("picture") or {}).get("view")))
        how = "the slice with most label voxels" + (
            f", {text(' or '.join(views))}, patient's right on the left" if views else ", as stored"
        )
        if flat(self.cases):
            how = ""
        note, few = "", " few" if len(self.chosen) <= _LARGE else ""
        if len(self.chosen) < len(self.cases):
            note = (
                f'<p class="note">{len(self.chosen):,} of {len(self.cases):,} cases: those that need a look first, then an even choice.</p>'
            )
        return (
            f"<section><h2>Cases <small>{how}</small></h2>"
            + (f'<ul class="legend">{items(legend)}</ul>' if legend else "")
            + f'<div class="sheet{few}">{"".join(map(self._figure, self.chosen))}</div>{note}</section>'
        )

    def _figure(self, case: str) -> str:
        summary = self.cases[case]
        kind, words = "", _shape(summary)
        if case in self.wrong:
            kind, words = " bad", ", ".join(sorted({fault.code for fault in self.faults if fault.case == case}))
        elif case in self.doubtful:
            kind = " look"
            words = "; ".join(self.outliers.get(case) or sorted({fault.code for fault in self.faults if fault.case == case}))
        picture = slice_picture(summary.get("picture"), self.colours, title=case)
        return (
            f'<figure id="{self.anchors[case]}"><div class="cell{kind}">{picture}</div>'
            f'<figcaption><b>{text(case, 80)}</b><span class="{kind.strip()}">{text(words, 90)}</span></figcaption></figure>'
        )

    def rows(self) -> str:
        """Every case in a table that opens on demand."""
        if not self.cases:
            return ""
        labels = self.labels[:12]
        unit = "%" if flat(self.cases) else "ml"
        lines = "".join(
            f'<tr><td class="wrap">{self._link(case)}</td><td>{text(summary.get("split", ""))}</td>'
            f'<td class="n">{_shape(summary)}</td>'
            f'<td class="n">{_spacing(summary)}</td>'
            + "".join(f'<td class="n">{number(label_size(summary, label.value))}</td>' for label in labels)
            + "</tr>"
            for case, summary in list(self.cases.items())[:_ROWS]
        )
        first = heads("Case", "Use") + heads("Voxels", "Spacing, mm", *(f"{text(label.name, 40)}, {unit}" for label in labels), kind="n")
        return (
            f'<section><details><summary>All cases in numbers</summary><div class="scroll"><table><tr>{first}</tr>{lines}</table></div>'
            f"{more(len(self.cases), _ROWS, 'cases')}</details></section>"
        )

    def _link(self, case: str | None) -> str:
        if case is None:
            return ""
        return f'<a href="#{self.anchors[case]}">{text(case, 120)}</a>' if case in self.anchors else text(case, 120)


def _kind(severity: str) -> str:
    return "bad" if severity == "error" else "look"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _shape(summary: Summary) -> str:
    shape = [int(n) for n in summary["shape"]]
    return " × ".join(f"{n}" for n in shape if n > 1 or min(shape) > 1) or "1"


def _spacing(summary: Summary) -> str:
    steps = [step for step in summary.get("spacing") or () if step is not None]
    return " × ".join(f"{step:.3g}" for step in steps)
