"""Which model of a dataset is the champion: promotion, rollback, retirement, pins. Each is written in the dataset's ledger.

Every operation first finishes or takes back what an interrupted one left; see :mod:`nnunet_jobs.registry.moves`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nnunet_jobs.context import user_name
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import read_object, write_record
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.fitness import require_card, require_fit, retired_in_words
from nnunet_jobs.registry.ledger import Entry, Event, append, entries
from nnunet_jobs.registry.moves import MOVE, list_card, make_move, new_move, promotion_lock, settle
from nnunet_jobs.registry.standing import before_champion, held, hold_in_words, standing

__all__ = [
    "Decision", "Promotion", "demote", "held", "pin", "promote", "promote_if", "release", "retire", "rollback", "settle",
]  # fmt: skip
log = logging.getLogger("nnunet_jobs")


class Decision(Protocol):
    """Whether a model is promoted."""

    @property
    def promote(self) -> bool:
        """Whether the model is to become the champion."""
        ...

    @property
    def why(self) -> str:
        """The reason, in one sentence."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON object with what was compared; empty where nothing was."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What a run did to the champion's link.

    Attributes:
        promoted: Whether the run moved the link to its model.
        is_champion: Whether the link points to its model now.
        why: The reason, in a sentence.
    """

    promoted: bool
    is_champion: bool
    why: str = field(default="", compare=False)


def promote(
    workspace: Workspace,
    dataset: str,
    model: str,
    *,
    by: str | None = None,
    why: str = "A person promoted it.",
    facts: Mapping[str, Any] | None = None,
    files: Iterable[Path] = (),
) -> Entry | None:
    """Make a model the champion of its dataset because a person says so, also while the champion is held.

    Args:
        workspace: Whose model.
        dataset: Full name of the dataset.
        model: The model.
        by: The person; the user of this process if None.
        why: The reason, in one sentence.
        facts: JSON object for the ledger; never case ids.
        files: Files below ``nnUNet_results`` that the decision relied on, such as the evidence page.

    Returns:
        The ledger's entry; None where the model is the champion already.

    Raises:
        ConfigError: The model has no card, is retired, or was trained on withdrawn cases; or somebody's own folder is
            where the link should be.
        DataError: A file is not the one that the card lists; names it.
    """
    with promotion_lock(workspace, dataset) as settled:
        now = standing(settled.entries)
        require_fit(workspace, dataset, model, now)
        if workspace.champion(dataset) == model:
            return None
        facts = dict(facts or {})
        if hold := hold_in_words(now.hold):
            log.warning("%s: %s is promoted because a person asked for it, although: %s", dataset, model, hold)
            facts["although"] = hold
        who = by or user_name()
        entry = make_move(workspace, dataset, Event.PROMOTED, model=model, by=who, why=why, move=new_move(), facts=facts, files=files)
        log.info("%s now uses model %s", dataset, model)
        return entry


def promote_if(
    workspace: Workspace, dataset: str, model: str, decide: Callable[[str | None], Decision], *, by: str, record: Path
) -> Promotion:
    """Promote a model where a policy says so. A champion that is held stays, whatever the policy says.

    Args:
        workspace: Whose model.
        dataset: Full name of the dataset.
        model: The model.
        decide: Given the champion (None where there is none), says whether the model takes its place. It is called
            without a lock, since it may take long; where the champion changes meanwhile, it is called again with the
            new one. Its facts are written in the ledger as ``judged``, where there are any.
        by: The job or DAG run.
        record: File of the run, written before the link moves: an attempt that is killed in between is not forgotten by
            the next one, which would otherwise take the moved link for the work of another run.

    Raises:
        ConfigError: The model has no card or was trained on withdrawn cases; the ledger cannot be read; or somebody's own
            folder is where the link should be.
        DataError: A file is not the one that the card lists; names it.
    """
    while True:
        with promotion_lock(workspace, dataset) as settled:
            list_card(workspace, dataset, model, by=by, found=settled.entries)
            champion = workspace.champion(dataset)
            if champion == model:
                return _kept(workspace, dataset, model, record, "It is the champion already.")
        decision = decide(champion)
        with promotion_lock(workspace, dataset):
            if workspace.champion(dataset) != champion:
                log.info("%s: the champion changed while %s was judged; judged again", dataset, model)
                continue
            found = entries(workspace, dataset)  # a hold in a line that cannot be read must not be overlooked
            _note_judgement(workspace, dataset, model, champion, decision, by=by, found=found)
            list_card(workspace, dataset, model, by=by, found=entries(workspace, dataset))  # the decision is written in the card
            now = standing(found)
            reason = hold_in_words(now.hold) or retired_in_words(model, now)
            if reason or not decision.promote:
                return _kept(workspace, dataset, model, record, reason or decision.why)
            require_fit(workspace, dataset, model, now)
            move = new_move()
            write_record(record, {"model": model, "before": champion, "move": move})
            facts = decision.facts
            make_move(workspace, dataset, Event.PROMOTED, model=model, by=by, why=decision.why, move=move, facts=facts)
            log.info("%s now uses model %s: %s", dataset, model, decision.why)
            return Promotion(promoted=True, is_champion=True, why=decision.why)


def rollback(
    workspace: Workspace, dataset: str, model: str | None = None, *, by: str | None = None, why: str = "A person rolled back.",
    facts: Mapping[str, Any] | None = None,
) -> Entry:  # fmt: skip
    """Make an earlier champion the champion again. It is held from then on, until a person calls :func:`release`.

    Args:
        workspace: Whose model.
        dataset: Full name of the dataset.
        model: An earlier champion; the one that the champion replaced if None.
        by: The person; the user of this process if None.
        why: The reason, in one sentence.
        facts: JSON object for the ledger; never case ids.

    Returns:
        The ledger's entry. Where the same rollback was interrupted before, it is finished, and not done twice.

    Raises:
        ConfigError: There is no such earlier champion, or it cannot be promoted.
        DataError: A file is not the one that the model's card lists; names it.
    """
    with promotion_lock(workspace, dataset) as settled:
        if settled.finished and settled.finished.event is Event.ROLLED_BACK and model in (None, settled.finished.model):
            return settled.finished
        now = standing(settled.entries)
        champion = workspace.champion(dataset)
        known = ", ".join(now.earlier) or "none"
        wanted = model or (before_champion(settled.entries, champion) if champion else next(iter(now.earlier), None))
        if wanted is None:
            raise ConfigError(
                field="model",
                problem=f"the ledger of {dataset} knows no champion before {champion}",
                fix=f"name one of the earlier champions ({known}), or promote another model",
            )
        if wanted not in now.earlier:
            problem = "is the champion already" if wanted == champion else f"was never the champion of {dataset}; earlier ones: {known}"
            raise ConfigError(field="model", value=wanted, problem=problem, fix="name an earlier champion, or promote the model instead")
        require_fit(workspace, dataset, wanted, now)
        who = by or user_name()
        return make_move(workspace, dataset, Event.ROLLED_BACK, model=wanted, by=who, why=why, move=new_move(), facts=facts)


def retire(
    workspace: Workspace, dataset: str, model: str, *, by: str | None = None, why: str = "A person retired it.",
    facts: Mapping[str, Any] | None = None,
) -> Entry | None:  # fmt: skip
    """Say that a model is never to be the champion again. Its card and its entries in the ledger stay.

    Returns:
        The ledger's entry; None where it is retired already.

    Raises:
        ConfigError: Nothing is known of the model, or it is the champion.
    """
    with promotion_lock(workspace, dataset) as settled:
        if not any(entry.model == model for entry in settled.entries):
            require_card(workspace, dataset, model)
        if workspace.champion(dataset) == model:
            problem = f"is the champion of {dataset}"
            raise ConfigError(field="model", value=model, problem=problem, fix="promote another model or roll back first")
        if model in standing(settled.entries).retired:
            return None
        return append(workspace, dataset, Event.RETIRED, model=model, by=by or user_name(), why=why, facts=facts)


def pin(
    workspace: Workspace, dataset: str, model: str | None = None, *, by: str | None = None, why: str = "A person pinned it.",
    facts: Mapping[str, Any] | None = None,
) -> Entry:  # fmt: skip
    """Hold the champion: no policy promotes another model until a person calls :func:`release`.

    Args:
        workspace: Whose model.
        dataset: Full name of the dataset.
        model: The champion, for a caller who wants to be sure which one is pinned; any champion if None.
        by: The person; the user of this process if None.
        why: The reason, in one sentence.
        facts: JSON object for the ledger; never case ids.

    Raises:
        ConfigError: There is no champion, or it is another model.
    """
    with promotion_lock(workspace, dataset):
        champion = workspace.champion(dataset)
        if champion is None or model not in (None, champion):
            problem = f"cannot be pinned, since the champion of {dataset} is {champion or 'no model'}"
            raise ConfigError(field="model", value=model, problem=problem, fix="promote it first")
        return append(workspace, dataset, Event.PINNED, model=champion, before=champion, by=by or user_name(), why=why, facts=facts)


def release(
    workspace: Workspace, dataset: str, *, by: str | None = None, why: str = "A person released it.", facts: Mapping[str, Any] | None = None
) -> Entry | None:
    """Let policies promote again, after a pin or a rollback.

    Returns:
        The ledger's entry; None where nothing was held.
    """
    with promotion_lock(workspace, dataset) as settled:
        if standing(settled.entries).hold is None:
            return None
        champion = workspace.champion(dataset)
        return append(workspace, dataset, Event.RELEASED, model=champion, before=champion, by=by or user_name(), why=why, facts=facts)


def demote(
    workspace: Workspace, dataset: str, model: str, *, by: str | None = None, why: str = "Cases that it was trained on were withdrawn."
) -> bool:
    """Remove the champion's link if it points to this model. Returns whether it did."""
    with promotion_lock(workspace, dataset) as settled:
        if workspace.champion(dataset) != model:
            return settled.finished is not None and settled.finished.event is Event.DEMOTED and settled.finished.model == model
        make_move(workspace, dataset, Event.DEMOTED, model=model, by=by or user_name(), why=why, move=new_move())
        log.warning("%s has no promoted model any more: %s was demoted", dataset, model)
        return True


def _note_judgement(
    workspace: Workspace, dataset: str, model: str, champion: str | None, decision: Decision, *, by: str, found: Sequence[Entry]
) -> None:
    """Write down what was compared, once for each run: a killed attempt's retry comes to the same."""
    if not decision.facts:
        return
    facts = json.loads(json.dumps({**decision.facts, "promote": decision.promote}))  # as it will be read
    last = next((entry for entry in reversed(found) if entry.event is Event.JUDGED and entry.model == model), None)
    if last and (last.before, last.by, last.why, dict(last.facts)) == (champion, by, decision.why, facts):
        return
    append(workspace, dataset, Event.JUDGED, model=model, before=champion, by=by, why=decision.why, facts=facts)


def _kept(workspace: Workspace, dataset: str, model: str, record: Path, why: str) -> Promotion:
    """What there is to say of a run that did not move the link just now; an attempt before may have."""
    is_champion = workspace.champion(dataset) == model
    known = read_object(record)
    ours = is_champion and known.get("model") == model
    if ours and "move" in known:  # version 0.1 wrote no name of the move
        last = standing(entries(workspace, dataset, damaged=True)).move
        ours = last is not None and last.facts.get(MOVE) == known["move"]
    return Promotion(promoted=ours, is_champion=is_champion, why=why)
