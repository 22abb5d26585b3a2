"""What a ledger says of a dataset's models now: which one is the champion, which ones were, which are retired, and whether it is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import Entry, Event, entries

MOVES = frozenset({Event.PROMOTED, Event.ROLLED_BACK, Event.DEMOTED})
"""Events that change the champion."""
_HOLDS = frozenset({Event.PINNED, Event.ROLLED_BACK})


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the entries of a ledger add up to.

    Attributes:
        champion: The champion by the ledger; None where there is none.
        move: The newest entry that changed the champion; None before the first.
        earlier: Models that were the champion and are not it now, the latest first.
        retired: Model to the entry that retired it.
        hold: The entry since which policies must not promote; None where they may.
    """

    champion: str | None
    move: Entry | None
    earlier: Sequence[str]
    retired: Mapping[str, Entry]
    hold: Entry | None


def standing(found: Sequence[Entry]) -> Standing:
    """Add up the entries of a ledger."""
    move: Entry | None = None
    hold: Entry | None = None
    retired: dict[str, Entry] = {}
    champions: dict[str, None] = {}
    for entry in found:
        if entry.event in MOVES:
            move = entry
            if entry.event is not Event.DEMOTED and entry.model is not None:
                champions.pop(entry.model, None)
                champions[entry.model] = None
        if entry.event in _HOLDS:
            hold = entry
        elif entry.event is Event.RELEASED:
            hold = None
        elif entry.event is Event.RETIRED and entry.model is not None:
            retired.setdefault(entry.model, entry)
    champion = None if move is None or move.event is Event.DEMOTED else move.model
    earlier = [model for model in reversed(champions) if model != champion]
    return Standing(champion=champion, move=move, earlier=earlier, retired=retired, hold=hold)


def standing_of(workspace: Workspace, dataset: str) -> Standing:
    """Add up a dataset's ledger as far as it can be read."""
    return standing(entries(workspace, dataset, damaged=True))


def held(workspace: Workspace, dataset: str) -> str | None:
    """Why no policy may promote a model of this dataset, in a sentence; None where policies may.

    A pin or a rollback holds the champion until a person releases it.
    """
    return hold_in_words(standing(entries(workspace, dataset)).hold)


def hold_in_words(hold: Entry | None) -> str | None:
    """The sentence of :func:`held`."""
    if hold is None:
        return None
    what = f"{hold.model} was pinned" if hold.event is Event.PINNED else f"{hold.before} was rolled back to {hold.model}"
    return f"Held until a person releases it: {what} on {hold.at[:10]} by {hold.by} ({hold.why.rstrip('.')})."


def before_champion(found: Sequence[Entry], champion: str) -> str | None:
    """The champion that this one replaced when it was last promoted; a rollback to it does not count."""
    for entry in reversed(found):
        if entry.event is Event.PROMOTED and entry.model == champion:
            return entry.before
    return None
