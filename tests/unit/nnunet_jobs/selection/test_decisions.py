"""What the gate learns from a dataset's ledger: who became the champion, by whom, and what was judged before."""

from __future__ import annotations

from typing import Any

from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import Event, append, entries
from nnunet_jobs.selection.decisions import judged_before, records_of
from nnunet_jobs.selection.gate.history import Record

DATASET = "Dataset005_Phantom"


def judge(workspace: Workspace, model: str, decision: str, **fields: Any) -> dict[str, Any]:
    """A judgement in the ledger, and its facts."""
    record = Record(at="2026-03-01T00:00:00+00:00", decision=decision, promoted=decision == "promote", gain=0.01, noise=0.002, **fields)
    facts = {"decision": decision, "inputs": f"inputs of {model}", "record": record.to_json()}
    append(workspace, DATASET, Event.JUDGED, model=model, by="job 1", why="Judged.", facts=facts)
    return facts


def test_a_model_counts_as_promoted_where_the_ledger_says_so_and_by_whom(workspace: Workspace) -> None:
    facts = judge(workspace, "gate's", "promote")
    append(workspace, DATASET, Event.PROMOTED, model="gate's", by="job 1", why="Better.", facts=facts)
    judge(workspace, "held back", "promote")
    judge(workspace, "asked", "ask")
    judge(workspace, "kept", "keep")
    append(workspace, DATASET, Event.APPROVED, model="asked", by="anna", why="I looked at it.")
    append(workspace, DATASET, Event.PROMOTED, model="asked", by="anna", why="I looked at it.")
    append(workspace, DATASET, Event.ROLLED_BACK, model="gate's", before="asked", by="ben", why="It fails on site B.")
    found = [(record.decision, record.promoted, record.approved, record.gain) for record in records_of(entries(workspace, DATASET))]
    assert found == [
        ("promote", True, False, 0.01),
        ("promote", False, False, 0.01),
        ("keep", False, False, 0.01),
        ("ask", True, True, 0.01),
        ("promote", True, True, None),
    ]


def test_the_same_scores_are_not_judged_twice(workspace: Workspace) -> None:
    facts = judge(workspace, "model", "keep")
    found = entries(workspace, DATASET)
    assert judged_before(found, "model", facts["inputs"]) == facts
    assert judged_before(found, "model", "others") is None
    assert judged_before(found, "another", facts["inputs"]) is None
