"""Whether a model may become the champion: it has a card, its files are those of the card, and nobody has retired or withdrawn it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.storage.files import sha256_file
from nnunet_jobs.contract.storage.withdrawals import listed, trained_on_withdrawn
from nnunet_jobs.contract.storage.workspace import MODEL_CARD, Workspace
from nnunet_jobs.registry.standing import Standing

_READERS = 4
"""Files that are hashed at once: a rollback should not wait for one checkpoint after the other."""


def differing(card: Mapping[str, Any], root: Path) -> list[str]:
    """Files of a model that are missing or not as its card lists them, by their path below the model's folder."""

    def differs(name: str) -> bool:
        return not os.path.isfile(root / name) or sha256_file(root / name) != card["files"][name]

    with ThreadPoolExecutor(_READERS) as pool:
        return [name for name, found in zip(card["files"], pool.map(differs, card["files"]), strict=True) if found]


def require_fit(workspace: Workspace, dataset: str, model: str, now: Standing) -> None:
    """Refuse a model that must not become the champion.

    Raises:
        ConfigError: It has no card, is retired, or was trained on withdrawn cases.
        DataError: A file is not the one that the card lists; names it.
    """
    card = require_card(workspace, dataset, model)
    root = workspace.model_root(model) / dataset
    if reason := retired_in_words(model, now):
        raise ConfigError(field="model", value=model, problem=f"not promoted: {reason}", fix="train another model")
    if seen := trained_on_withdrawn(root):
        raise ConfigError(
            field="model",
            value=model,
            problem=f"not promoted, {listed(seen)} withdrawn since it was trained on",
            fix="train on a new version",
        )
    if names := differing(card, root):
        raise DataError(f"model={model!r}: not promoted, these files differ from its card or are missing: {', '.join(names)}")


def require_card(workspace: Workspace, dataset: str, model: str) -> dict[str, Any]:
    """The model's card; an unknown model's error names those that there are."""
    path = workspace.model_root(model) / dataset / MODEL_CARD
    if not path.is_file():
        known = ", ".join(name for name, _ in workspace.model_cards(dataset)) or "none"
        raise ConfigError(
            field="model",
            value=model,
            problem=f"{path} is missing; models of {dataset}: {known}",
            fix=f"name one of these, or run FindBestConfigOperator for {dataset} first",
        )
    return workspace.model_card(dataset, model)


def retired_in_words(model: str, now: Standing) -> str | None:
    """Who retired a model and why, in a sentence; None where nobody did."""
    entry = now.retired.get(model)
    return f"{model} was retired on {entry.at[:10]} by {entry.by} ({entry.why.rstrip('.')})." if entry else None
