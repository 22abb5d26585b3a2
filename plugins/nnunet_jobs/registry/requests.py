"""Changes that a program asks for: one that is asked for again, such as by the retry of a killed task, is made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from nnunet_jobs.contract.storage.files import locked
from nnunet_jobs.contract.storage.permissions import workspace_umask
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import Entry, entries
from nnunet_jobs.registry.moves import settle

REQUEST = "request"
"""Fact of an entry: name of the request that it was made for."""


def once(workspace: Workspace, dataset: str, request: str, change: Callable[[Mapping[str, str]], Entry | None]) -> Entry | None:
    """Make a change, unless the ledger has an entry of the same request already. Without this, a rollback that is tried twice goes back two
    champions.

    Args:
        workspace: Whose models.
        dataset: Full name of the dataset.
        request: Name of the request, the same for all of its attempts.
        change: Makes the change with the facts that it is given, and returns the ledger's entry, or None where there was nothing to do.

    Returns:
        The entry of this or of the earlier attempt; None where there was nothing to do.
    """
    lock = Path(workspace.results) / ".locks" / f"{dataset}-request.lock"
    with workspace_umask(workspace), locked(lock, interval=0.05):
        settle(workspace, dataset)  # a move that was interrupted after its entry was written counts as made
        found = entries(workspace, dataset, damaged=True)
        known = next((entry for entry in reversed(found) if entry.facts.get(REQUEST) == request), None)
        return known or change({REQUEST: request})
