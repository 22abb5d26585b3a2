"""Earlier decisions of a dataset, as its ledger tells them, for the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nnunet_jobs.registry.ledger import Entry, Event
from nnunet_jobs.selection.gate.history import Record


def records_of(found: Sequence[Entry]) -> list[Record]:
    """Return one record for each judgement, and one for each champion that a person chose.

    A judged model counts as promoted where the ledger says that it was, whatever the gate decided: a champion that was held stayed, and
    a person may have promoted what the gate only asked about. A model that a person promoted or approved is the anchor from then on.
    """
    records: dict[int, Record] = {}
    judged: dict[str, int] = {}
    approved: set[str] = set()
    for entry in found:
        if entry.model is None:
            continue
        if entry.event is Event.JUDGED and "record" in entry.facts:
            judged[entry.model] = entry.number
            records[entry.number] = replace(Record.from_json(dict(entry.facts["record"])), promoted=False)
        elif entry.event is Event.APPROVED:
            approved.add(entry.model)
        elif entry.event is Event.PROMOTED:
            by_person = "inputs" not in entry.facts
            known = records.pop(judged.pop(entry.model, 0), None)
            promoted = known or Record(at=entry.at, decision="promote")
            records[entry.number] = replace(promoted, at=entry.at, promoted=True, approved=by_person or entry.model in approved)
        elif entry.event is Event.ROLLED_BACK:
            records[entry.number] = Record(at=entry.at, decision="promote", promoted=True, approved=True)
    return [records[number] for number in sorted(records)]


def judged_before(found: Sequence[Entry], model: str, inputs: str) -> Mapping[str, Any] | None:
    """Return what was found when the same model was judged by the same scores, policy and champion; None where it was not."""
    for entry in reversed(found):
        if entry.event is Event.JUDGED and entry.model == model and entry.facts.get("inputs") == inputs and "record" in entry.facts:
            return entry.facts
    return None
