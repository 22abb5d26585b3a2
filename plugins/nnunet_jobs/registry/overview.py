"""A dataset's models for people and programs: what is known of each, and which one is the champion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.withdrawals import trained_on_withdrawn
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import Entry, as_json, entries
from nnunet_jobs.registry.standing import Standing, hold_in_words, standing

_SHOWN = ("choice", "cv_dice_postprocessed", "cv_cases", "holdout_dice", "holdout_cases")


def overview(workspace: Workspace, dataset: str) -> dict[str, Any]:
    """All models of a dataset, the newest first.

    Returns:
        ``dataset``, ``champion``, ``held`` (the reason why policies must not promote, or None) and ``models``: each with
        ``model``, ``champion``, ``retired`` (reason or None), ``created``, the card's main ``metrics``, and ``withdrawn``
        (number of cases that it was trained on and that were withdrawn).
    """
    found = entries(workspace, dataset, damaged=True)
    now = standing(found)
    cards = dict(workspace.model_cards(dataset))
    names = {*cards, *(entry.model for entry in found if entry.model is not None)}
    rows = [_row(workspace, dataset, name, cards.get(name), now) for name in sorted(names)]
    rows.sort(key=lambda row: row["created"] or "", reverse=True)
    return {"dataset": dataset, "champion": workspace.champion(dataset), "held": hold_in_words(now.hold), "models": rows}


def details(workspace: Workspace, dataset: str, model: str | None) -> dict[str, Any]:
    """One model with all of its entries in the ledger.

    Args:
        workspace: Whose model.
        dataset: Full name of the dataset.
        model: The model; the champion if None.

    Returns:
        A row of :func:`overview`, ``dataset``, ``held``, and ``entries``, the oldest first.

    Raises:
        ConfigError: There is no such model; names those that there are.
    """
    everything = overview(workspace, dataset)
    name = model or everything["champion"]
    for row in everything["models"]:
        if row["model"] == name:
            told = [as_json(entry) for entry in entries(workspace, dataset, damaged=True) if name in (entry.model, entry.before)]
            return {"dataset": dataset, "held": everything["held"], **row, "entries": told}
    known = ", ".join(row["model"] for row in everything["models"]) or "none"
    problem = f"is no model of {dataset}; there are: {known}" if name else f"no model of {dataset} is promoted; there are: {known}"
    raise ConfigError(field="model", value=model, problem=problem, fix="name one of these")


def overview_text(found: Mapping[str, Any]) -> str:
    """The overview for a person."""
    lines = [found["dataset"]]
    lines += [f"  {_row_text(row)}" for row in found["models"]] or ["  no model is selected"]
    return "\n".join([*lines, *([found["held"]] if found["held"] else [])])


def details_text(found: Mapping[str, Any]) -> str:
    """The details for a person."""
    lines = [f"{found['dataset']}  {_row_text(found)}"]
    if found["champion"] and found["held"]:
        lines.append(found["held"])
    for entry in found["entries"]:
        lines.append(f"  {entry['number']}  {entry['at'][:19]}  {entry['event']} {entry['model'] or ''} by {entry['by']}: {entry['why']}")
    return "\n".join(lines)


def move_text(dataset: str, entry: Entry | None, champion: str | None, held: str | None) -> str:
    """What an operation did, for a person."""
    did = f"{entry.event.value.replace('_', ' ')} {entry.model}".rstrip() if entry else "nothing to do"
    lines = [f"{dataset}: {did}; the champion is {champion or 'no model'}"]
    if entry and entry.event == "rolled_back":
        lines[0] = f"{dataset}: rolled back from {entry.before} to {entry.model}"
    return "\n".join([*lines, *([held] if held else [])])


def _row(workspace: Workspace, dataset: str, model: str, card: Mapping[str, Any] | None, now: Standing) -> dict[str, Any]:
    retired = now.retired.get(model)
    return {
        "model": model,
        "champion": workspace.champion(dataset) == model,
        "retired": f"{retired.at[:10]} by {retired.by}: {retired.why}" if retired else None,
        "created": card.get("created") if card else None,
        "metrics": {name: card.get("metrics", {}).get(name) for name in _SHOWN} if card else None,
        "withdrawn": len(trained_on_withdrawn(workspace.model_root(model) / dataset)),
    }


def _row_text(row: Mapping[str, Any]) -> str:
    parts = [f"{'*' if row['champion'] else ' '} {row['model']}"]
    if metrics := row["metrics"]:
        parts.append(f"{str(row['created'] or '-')[:10]}  {metrics['choice'] or '-'}")
        parts.append(f"cross-validation Dice {_dice(metrics['cv_dice_postprocessed'])}, hold-out Dice {_dice(metrics['holdout_dice'])}")
    else:
        parts.append("its card is gone")
    if row["champion"]:
        parts.append("champion")
    if row["withdrawn"]:
        parts.append(f"{row['withdrawn']} of its training cases were withdrawn")
    if row["retired"]:
        parts.append(f"retired {row['retired']}")
    return "  ".join(parts)


def _dice(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
