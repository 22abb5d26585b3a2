"""Moves of the champion's link that a kill at any moment leaves done or not begun.

A move writes its intent, then its entry in the ledger, then repoints the link, then removes the intent. The entry decides: an intent
whose entry is written is finished by the next operation, and one without an entry is taken back, since the link has not moved yet.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import locked, read_object, repoint, sha256_file, sync_directory, write_record
from nnunet_jobs.contract.storage.permissions import workspace_umask
from nnunet_jobs.contract.storage.workspace import MODEL_CARD, Workspace
from nnunet_jobs.registry.ledger import Entry, Event, append, entries, ledger_path, make_folder
from nnunet_jobs.registry.standing import standing

log = logging.getLogger("nnunet_jobs")
OUTSIDE = "somebody outside"
"""Who moved a link that none of our operations moved."""
MOVE = "move"
"""Fact of an entry: name of the move, by which its intent and its run's record know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What was found and put right before an operation.

    Attributes:
        entries: The dataset's ledger now; lines that cannot be read are left out.
        finished: Entry of an interrupted move that was finished just now; None where there was none.
    """

    entries: list[Entry]
    finished: Entry | None


@contextlib.contextmanager
def promotion_lock(workspace: Workspace, dataset: str) -> Iterator[Settled]:
    """Hold the lock of a dataset's champion, with whatever was interrupted settled. What is written meanwhile is for whom it should be.

    Raises:
        ConfigError: Somebody's own folder is where the link should be, and an interrupted move cannot be finished.
    """
    lock = Path(workspace.results) / ".locks" / f"{dataset}-champion.lock"
    with workspace_umask(workspace), locked(lock, interval=0.05):
        yield _settle(workspace, dataset)


def settle(workspace: Workspace, dataset: str) -> Entry | None:
    """Finish or take back an interrupted move, and write down a link that was moved by hand. Every operation does this first.

    Returns:
        The entry of a move that was finished just now; None where there was none.
    """
    with promotion_lock(workspace, dataset) as settled:
        return settled.finished


def new_move() -> str:
    """A fresh name for a move."""
    return secrets.token_hex(8)


def make_move(
    workspace: Workspace,
    dataset: str,
    event: Event,
    *,
    model: str,
    by: str,
    why: str,
    move: str,
    facts: Mapping[str, Any] | None = None,
    files: Iterable[Path] = (),
) -> Entry:
    """Change the champion, and write it down. The caller holds :func:`promotion_lock`.

    Args:
        workspace: Whose champion.
        dataset: Full name of the dataset.
        event: ``promoted`` and ``rolled_back`` make ``model`` the champion; ``demoted`` takes its link away.
        model: The model.
        by: Name of a person, or the job or DAG run.
        why: The reason, in one sentence.
        move: Name of the move, from :func:`new_move`.
        facts: What belongs to the entry.
        files: Files below ``nnUNet_results`` that the entry lists beside the model's card.

    Raises:
        ConfigError: Somebody's own folder is where the link should be.
    """
    link = workspace.champion_link(dataset)
    if link.exists() and not link.is_symlink():
        problem = f"{link} is not a link; move it away so that it can point to {workspace.model_root(model) / dataset}"
        raise ConfigError(field="model", value=model, problem=problem)
    before = workspace.champion(dataset)
    card = workspace.model_root(model) / dataset / MODEL_CARD
    intent = _intent_path(workspace, dataset)
    make_folder(workspace)
    write_record(intent, {"move": move, "event": event.value, "model": model, "before": before})
    entry = append(
        workspace, dataset, event, model=model, before=before, by=by, why=why,
        facts={**(facts or {}), MOVE: move}, files=[*([card] if card.is_file() else []), *files],
    )  # fmt: skip
    _follow(workspace, dataset, entry)
    _remove(intent)
    return entry


def list_card(workspace: Workspace, dataset: str, model: str, *, by: str, found: Iterable[Entry]) -> None:
    """Write down a card that is new or was written again since the ledger listed it. The caller holds :func:`promotion_lock`."""
    card = workspace.model_root(model) / dataset / MODEL_CARD
    if not card.is_file():
        return
    name = card.relative_to(workspace.results).as_posix()
    listed = [entry.files[name] for entry in found if name in entry.files]
    if listed and listed[-1] == sha256_file(card):
        return
    why = "Its card was written again." if listed else "Its card was written."
    append(workspace, dataset, Event.REGISTERED, model=model, by=by, why=why, files=[card])


def _settle(workspace: Workspace, dataset: str) -> Settled:
    found = entries(workspace, dataset, damaged=True)
    intent = _intent_path(workspace, dataset)
    finished = None
    if intent.exists():
        move = read_object(intent).get("move")
        finished = next((entry for entry in reversed(found) if entry.facts.get(MOVE) == move), None)
        if finished is not None:
            log.warning("%s: a move that was interrupted is finished: %s %s", dataset, finished.event, finished.model)
            # Where the link is neither as before nor as it should be, somebody has moved it by hand since, and that counts.
            if workspace.champion(dataset) == finished.before:
                _follow(workspace, dataset, finished)
        _remove(intent)
    now, by_ledger = workspace.champion(dataset), standing(found)
    if now != by_ledger.champion:
        event, model = (Event.PROMOTED, now) if now else (Event.DEMOTED, by_ledger.champion)
        began = "It was the champion when this ledger was begun." if not found else "The champion's link was found moved."
        log.warning("%s: the champion is %s, and the ledger said %s", dataset, now, by_ledger.champion)
        found.append(append(workspace, dataset, event, model=model, before=by_ledger.champion, by=OUTSIDE, why=began))
    return Settled(entries=found, finished=finished)


def _follow(workspace: Workspace, dataset: str, entry: Entry) -> None:
    """Make the link what an entry says."""
    link = workspace.champion_link(dataset)
    if entry.event is Event.DEMOTED:
        if link.is_symlink():
            _remove(link)
        return
    try:
        repoint(link, workspace.model_root(str(entry.model)) / dataset)
    except FileExistsError as error:
        raise ConfigError(field="model", value=entry.model, problem=str(error)) from error


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def _intent_path(workspace: Workspace, dataset: str) -> Path:
    return ledger_path(workspace, dataset).with_suffix(".intent.json")
