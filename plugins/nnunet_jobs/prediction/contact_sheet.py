"""Writes an overview of a folder's predictions: slices with outlines, volumes and flags, on one page without scripts.

It is made like the dataset's report, and its size is limited for any number of cases: those that need a look come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import read_json, write_atomic
from nnunet_jobs.contract.storage.predictions import SHEET
from nnunet_jobs.report.facts import label_values
from nnunet_jobs.report.figures import colour, slice_picture
from nnunet_jobs.report.html import render

_PICTURES, _PICTURE_BYTES = 240, 2_500_000
_MEASURED = 12  # labels whose volumes are in the table of all cases

Entry = Mapping[str, Any]


def write_sheet(output: Path, summary: Mapping[str, Any], pictures: Path) -> Path:
    """Write ``contact-sheet.html``.

    Args:
        summary: Content of ``predictions.json``.
        pictures: Folder of the cases' pictures, ``<case>.json``.
    """
    path = output / SHEET
    write_atomic(path, _page(summary, pictures).encode())
    return path


def _page(summary: Mapping[str, Any], pictures: Path) -> str:
    cases: Mapping[str, Entry] = summary["cases"]
    failed = {case: entry for case, entry in cases.items() if entry["status"] != "predicted"}
    flagged = {case: entry for case, entry in cases.items() if case not in failed and entry.get("flags")}
    words = [f"{len(entries):,} {what}" for entries, what in ((failed, "failed"), (flagged, "to look at")) if entries]
    labels = label_values({"labels": summary.get("labels") or {}}, {})
    colours = {str(label.value): colour(place) for place, label in enumerate(labels)}
    chosen = _choose(cases, failed, flagged, pictures)
    outlined = {value for picture in chosen.values() for value in (picture or {}).get("contours", {})}
    names = dict.fromkeys(name for entry in cases.values() for name in entry.get("volumes_ml") or ())
    dice = summary.get("dice") or {}
    return render(
        "contact_sheet.html",
        title=f"{summary['dataset']}: predictions",
        summary={
            "model": summary["model"],
            "dice": dice,
            "not_judged": summary.get("not_judged"),
            "cases": {case: {"flags": (), "volumes_ml": {}, "seconds": None, **entry} for case, entry in cases.items()},
        },
        kind="bad" if failed else "look" if flagged else "good",
        verdict=" · ".join(words) or "Nothing stands out",
        predicted=len(cases) - len(failed),
        absent=[name for name, value in dice.get("per_label", {}).items() if value is None],
        to_look_at=_to_look_at(failed, flagged),
        pictures={case: slice_picture(picture, colours, title=case) for case, picture in chosen.items()},
        views=sorted({picture["view"] for picture in chosen.values() if picture and picture.get("view")}),
        labels=[label for label in labels if str(label.value) in outlined],
        colours=colours,
        measured=list(names)[:_MEASURED],
    )


def _to_look_at(failed: Mapping[str, Entry], flagged: Mapping[str, Entry]) -> list[dict[str, str]]:
    """Return the failed cases with their reasons, then the flags of the others."""
    lines = [{"kind": "bad", "case": case, "what": "failed", "why": str(entry.get("reason", ""))} for case, entry in failed.items()]
    for case, entry in flagged.items():
        lines += [{"kind": "look", "case": case, "what": flag["code"], "why": flag["message"]} for flag in entry["flags"]]
    return lines


def _choose(cases: Mapping[str, Entry], failed: Mapping[str, Entry], flagged: Mapping[str, Entry], pictures: Path) -> dict[str, Any]:
    """Choose the pictures of the page: cases with flags first, then others, evenly spaced if there are too many."""
    rest = [case for case in cases if case not in failed and case not in flagged]
    room = max(_PICTURES - len(flagged), _PICTURES // 2)
    if len(rest) > room:
        rest = [rest[place * len(rest) // room] for place in range(room)]
    chosen, spent = dict[str, Any](), 0
    for case in [*list(flagged)[: _PICTURES - len(rest)], *rest]:
        path = pictures / f"{case}.json"
        spent += path.stat().st_size if path.is_file() else 0
        if spent > _PICTURE_BYTES:
            break
        chosen[case] = _picture(path)
    return chosen


def _picture(path: Path) -> Any:
    """Return a case's picture; None if none was made, as by an older version, or it is damaged."""
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        return None
