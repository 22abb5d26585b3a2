"""The predictions of a folder at a glance: every case's busiest slice with outlines, volumes and flags, on one page without scripts.

It is made like the dataset's report, and of one bounded size however many cases there are: those that need a look come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.files import read_json, write_atomic
from nnunet_jobs.contract.predictions import SHEET
from nnunet_jobs.report.facts import label_values, number
from nnunet_jobs.report.figures import colour, slice_picture, swatch
from nnunet_jobs.report.html import heads, items, more, text
from nnunet_jobs.report.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_PICTURES, _PICTURE_BYTES = 240, 2_500_000
_LINES, _LEGEND, _VOLUMES, _LARGE = 2_000, 30, 4, 24

Entry = Mapping[str, Any]


def write_sheet(output: Path, summary: Mapping[str, Any], pictures: Path) -> Path:
    """Write ``contact-sheet.html``.

    Args:
        summary: content of ``predictions.json``. pictures: folder of the cases' pictures, ``<case>.json``.
    """
    path = output / SHEET
    write_atomic(path, _page(summary, pictures).encode())
    return path


def _page(summary: Mapping[str, Any], pictures: Path) -> str:
    cases: Mapping[str, Entry] = summary["cases"]
    failed = {case: entry for case, entry in cases.items() if entry["status"] != "predicted"}
    flagged = {case: entry for case, entry in cases.items() if case not in failed and entry.get("flags")}
    title = f"{summary['dataset']}: predictions"
    sections = [_head(title, summary, failed, flagged), _look_at(failed, flagged), _sheet(summary, failed, flagged, pictures)]
    body = "\n".join(section for section in [*sections, _rows(cases)] if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{text(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><main>\n{body}\n<footer>Pictures are for orientation, not for diagnosis.</footer>\n</main></body></html>\n"
    )


def _head(title: str, summary: Mapping[str, Any], failed: Mapping[str, Entry], flagged: Mapping[str, Entry]) -> str:
    kind = "bad" if failed else "look" if flagged else "good"
    words = [f"{len(entries):,} {what}" for entries, what in ((failed, "failed"), (flagged, "to look at")) if entries]
    facts = [f"<b>{len(summary['cases']) - len(failed):,}</b> predicted", f"model <b>{text(summary['model'], 80)}</b>"]
    if dice := summary.get("dice"):
        mean = "undefined" if dice["mean"] is None else f"{dice['mean']:.3f}"
        facts.append(f"Dice <b>{mean}</b> over {dice['cases']:,} cases with a reference segmentation")
        absent = [name for name, value in dice["per_label"].items() if value is None]
        if absent:
            facts.append(f"no reference has {text(', '.join(absent), 200)}: its Dice is undefined")
    facts += [f"not judged: {text(code)} ({text(reason, 200)})" for code, reason in (summary.get("not_judged") or {}).items()]
    return (
        f'<header><div><h1>{text(title)}</h1><ul class="facts">{items(facts)}</ul></div>'
        f'<div class="verdict {kind}">{" · ".join(words) or "Nothing stands out"}</div></header>'
    )


def _look_at(failed: Mapping[str, Entry], flagged: Mapping[str, Entry]) -> str:
    lines = [("bad", case, "failed", str(entry.get("reason", ""))) for case, entry in failed.items()]
    lines += [("look", case, flag["code"], flag["message"]) for case, entry in flagged.items() for flag in entry["flags"]]
    if not lines:
        return ""
    rows = "".join(
        f'<tr><td class="wrap">{text(case, 120)}</td><td class="{kind}"><code>{text(code, 40)}</code></td>'
        f'<td class="message">{text(message, 600)}</td></tr>'
        for kind, case, code, message in lines[:_LINES]
    )
    return (
        f'<section class="{lines[0][0]}"><h2>To look at <small>flags are hints, not faults</small></h2>'
        f'<div class="scroll"><table><tr>{heads("Case", "What", "Why")}</tr>{rows}</table></div>'
        f"{more(len(lines), _LINES, 'lines')}</section>"
    )


def _sheet(summary: Mapping[str, Any], failed: Mapping[str, Entry], flagged: Mapping[str, Entry], pictures: Path) -> str:
    cases: Mapping[str, Entry] = summary["cases"]
    rest = [case for case in cases if case not in failed and case not in flagged]
    room = max(_PICTURES - len(flagged), _PICTURES // 2)
    if len(rest) > room:
        rest = [rest[place * len(rest) // room] for place in range(room)]
    shown, spent = dict[str, Any](), 0
    for case in [*list(flagged)[: _PICTURES - len(rest)], *rest]:
        path = pictures / f"{case}.json"
        spent += path.stat().st_size if path.is_file() else 0
        if spent > _PICTURE_BYTES:
            break
        shown[case] = _picture(path)
    if not shown:
        return ""
    labels = label_values({"labels": summary.get("labels") or {}}, {})
    colours = {str(label.value): colour(place) for place, label in enumerate(labels)}
    seen = {value for picture in shown.values() for value in (picture or {}).get("contours", {})}
    legend = [f"{swatch(colours[str(label.value)])}{text(label.name, 80)}" for label in labels if str(label.value) in seen]
    views = sorted({picture["view"] for picture in shown.values() if picture and picture.get("view")})
    how = "the slice with most foreground" + (f", {text(' or '.join(views))}, patient's right on the left" if views else "")
    figures = "".join(_figure(case, cases[case], picture, colours) for case, picture in shown.items())
    total = len(cases) - len(failed)
    note = (
        f'<p class="note">{len(shown):,} of {total:,} cases: those with flags first, then an even choice.</p>' if len(shown) < total else ""
    )
    extra = [f"and {len(legend) - _LEGEND} more"] if len(legend) > _LEGEND else []
    return (
        f'<section><h2>Cases <small>{how}</small></h2><ul class="legend">{items([*legend[:_LEGEND], *extra])}</ul>'
        f'<div class="sheet{" few" if len(shown) <= _LARGE else ""}">{figures}</div>{note}</section>'
    )


def _figure(case: str, entry: Entry, picture: Any, colours: Mapping[str, str]) -> str:
    flags = ", ".join(dict.fromkeys(flag["code"] for flag in entry.get("flags") or ()))
    known: Mapping[str, float] = entry.get("volumes_ml") or {}
    volumes = [f"{text(name, 30)} {number(volume)} ml" for name, volume in list(known.items())[:_VOLUMES]]
    if len(known) > _VOLUMES:
        volumes.append(f"and {len(known) - _VOLUMES} more")
    return (
        f'<figure><div class="cell{" look" if flags else ""}">{slice_picture(picture, colours, title=case)}</div>'
        f'<figcaption><b>{text(case, 80)}</b><span class="look">{text(flags, 90)}</span> '
        f"<span>{', '.join(volumes)}</span></figcaption></figure>"
    )


def _rows(cases: Mapping[str, Entry]) -> str:
    """Every case in a table that opens on demand."""
    names = list(dict.fromkeys(name for entry in cases.values() for name in entry.get("volumes_ml") or ()))[:12]
    lines = "".join(
        f'<tr><td class="wrap">{text(case, 120)}</td><td>{text(entry["status"], 20)}</td><td class="n">{number(entry.get("seconds"))}</td>'
        + "".join(f'<td class="n">{number((entry.get("volumes_ml") or {}).get(name))}</td>' for name in names)
        + "</tr>"
        for case, entry in list(cases.items())[:_LINES]
    )
    first = heads("Case", "Status") + heads("Seconds", *(f"{text(name, 40)}, ml" for name in names), kind="n")
    return (
        f'<section><details><summary>All cases in numbers</summary><div class="scroll"><table><tr>{first}</tr>{lines}</table></div>'
        f"{more(len(cases), _LINES, 'cases; predictions.csv has all')}</details></section>"
    )


def _picture(path: Path) -> Any:
    """A case's picture; None where none was made, as by an older version, or it is damaged."""
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        return None
