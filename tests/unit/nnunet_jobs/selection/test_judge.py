"""The judge, where champion and challenger cannot be compared, and where a withdrawal changes what it found before."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from nnunet_jobs.contract.steps.promotion import PromotionPolicy
from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.contract.storage.withdrawals import MARK
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import Event, append
from nnunet_jobs.selection.holdout import Holdout
from nnunet_jobs.selection.judge import Judge, Judged
from support.selection import context

DATASET = "Dataset005_Phantom"


@pytest.fixture
def two(workspace: Workspace) -> Workspace:
    """Two models without a cross-validation, of a dataset without hold-out cases."""
    workspace.raw_dataset(DATASET).mkdir(parents=True)
    entry = {"split": "train", "group": "a", "images": ["i"], "label": "l"}
    write_json(workspace.raw_dataset(DATASET) / "manifest.json", {"cases": {"case": entry}, "history": []})
    for model in ("old", "new"):
        (workspace.model_root(model) / DATASET).mkdir(parents=True)
        card = {"hash": model, "created": "2026-01-01T00:00:00+00:00"}
        write_json(workspace.model_root(model) / DATASET / "model.json", card)
        write_json(workspace.model_root(model) / DATASET / "training_cases.json", {"schema": 1, "cases": {"case": "a"}})
    return workspace


def judge(workspace: Workspace, champion: str | None, **policy: Any) -> Judged:
    held = Holdout(cases={}, raw=workspace.raw_dataset(DATASET), ending=".nii.gz")
    surroundings = context(workspace)
    judged = Judge(
        workspace=workspace, dataset=DATASET, model="new", policy=PromotionPolicy(**policy), held=held, context=surroundings
    )  # fmt: skip
    return judged(champion)


def test_a_challenger_that_cannot_be_compared_is_no_first_model(two: Workspace) -> None:
    assert judge(two, None).promote
    for policy in ("if_better", "if_not_worse"):
        kept = judge(two, "old", promote=policy)
        assert (kept.promote, kept.facts["decision"]) == (False, "keep")
        assert "no label in common" in kept.why
    assert judge(two, "old", promote="ask").facts["decision"] == "ask"
    assert judge(two, "old", promote="always").promote


def test_a_champion_without_a_card_is_replaced_as_nobody_can_predict_with_it(two: Workspace) -> None:
    shutil.rmtree(two.model_root("old"))
    found = judge(two, "old")
    assert (found.promote, found.facts["champion_before"]) == (True, "old")


def test_a_challenger_is_judged_again_where_cases_of_the_champion_were_withdrawn_since(two: Workspace) -> None:
    kept = judge(two, "old")
    append(two, DATASET, Event.JUDGED, model="new", before="old", by="job 1", why=kept.why, facts=kept.facts)
    again = judge(two, "old")
    assert (again.facts["again"], again.decision) == (True, kept.facts), "a card that was made again gets the decision back"
    write_json(two.model_root("old") / DATASET / MARK, {"cases": {"case": {"at": "2026-02-01", "configurations": {}}}})
    assert judge(two, "old").promote
