"""Whose promotion it was: what a run says of itself decides whether downstream DAGs are triggered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.storage.files import sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry import promotion
from nnunet_jobs.registry.ledger import Entry
from nnunet_jobs.registry.promotion import Promotion, promote_if

DATASET = "Dataset005_Phantom"
MOVED, KEPT, ELSEWHERE = (Promotion(promoted=ours, is_champion=there) for ours, there in ((True, True), (False, True), (False, False)))


class Killed(BaseException):
    """The attempt's process is gone."""


@dataclass(frozen=True)
class Answer:
    """What a judge says."""

    promote: bool
    why: str = "The test wants it."
    facts: Mapping[str, Any] = field(default_factory=dict)


YES, NO = Answer(promote=True), Answer(promote=False)


def select(workspace: Workspace, model: str) -> None:
    """A model with a card, as a selection leaves it."""
    root = workspace.model_root(model) / DATASET
    root.mkdir(parents=True)
    (root / "plans.json").write_text(model)
    write_json(root / "model.json", {"files": {"plans.json": sha256_file(root / "plans.json")}})


def test_only_the_run_that_moved_the_link_promoted(workspace: Workspace, tmp_path: Path) -> None:
    select(workspace, "first")
    select(workspace, "better")

    def offer(model: str, run: str, answer: Answer = YES) -> Promotion:
        return promote_if(workspace, DATASET, model, lambda champion: answer, by=run, record=tmp_path / f"{run}.json")

    assert offer("first", "run-1") == MOVED
    assert offer("first", "run-2") == KEPT
    assert offer("better", "run-4", NO) == ELSEWHERE
    assert offer("better", "run-5") == MOVED
    assert offer("first", "run-6", NO) == ELSEWHERE
    assert offer("first", "run-1", NO) == ELSEWHERE, "it moved the link once, and the link has gone on"


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_attempt_that_is_killed_as_the_link_moves_is_not_forgotten_by_the_next(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The second attempt finds the link moved and would say that nothing had changed: downstream DAGs would never hear of the model."""
    select(workspace, "new")
    record = tmp_path / "promotion.json"
    move = promotion.make_move

    def killed(*arguments: Any, **more: Any) -> Entry:
        if when == "after":
            move(*arguments, **more)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "make_move", killed)
        with pytest.raises(Killed):
            promote_if(workspace, DATASET, "new", lambda champion: YES, by="run", record=record)
    assert workspace.champion(DATASET) == (None if when == "before" else "new")
    assert promote_if(workspace, DATASET, "new", lambda champion: YES, by="run", record=record) == MOVED
    assert promote_if(workspace, DATASET, "new", lambda champion: YES, by="run", record=tmp_path / "another run.json") == KEPT
