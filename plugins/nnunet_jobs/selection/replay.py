"""Replays the judgements of a dataset's ledger with another policy, by the scores that are still kept beside the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from nnunet_jobs.contract.steps.promotion import PromotionPolicy
from nnunet_jobs.contract.storage.withdrawals import trained_on_withdrawn
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import Entry, Event, entries
from nnunet_jobs.selection.gate.decision import Decision, decide
from nnunet_jobs.selection.gate.history import Record
from nnunet_jobs.selection.gate.scores import CaseScores
from nnunet_jobs.selection.kept import KeptScores

_NUMBERS = ("gain", "low", "high", "expected_gain")


def replay(workspace: Workspace, dataset: str, policy: PromotionPolicy) -> dict[str, Any]:
    """Say what another policy would have decided, night after night, each against the champion that it would have had.

    What people did (promotions by hand, rollbacks, pins, retirements) is taken as it was. A judgement whose scores are gone cannot be
    replayed: what happened then is taken for it, and it is named. Only hold-out cases of today count, from the night on since when they
    are as they are now.

    Args:
        workspace: Where the models are.
        dataset: Full name of the dataset.
        policy: The other policy.

    Returns:
        ``dataset``, ``policy``, ``decisions`` (each with ``number`` of the ledger's entry, ``at``, ``model``, ``champion``, ``decision``,
        ``promoted``, ``reason``, ``gain``, ``low``, ``high``, ``expected_gain``, number of ``cases``, ``gone``, which says why it could
        not be replayed, and ``then``, what happened), ``promotions`` and ``champion``, each ``replayed`` and ``then``, and number ``gone``.

    Raises:
        ConfigError: The ledger cannot be read, or the dataset is not registered.
    """
    found = entries(workspace, dataset)
    run = _Replay(KeptScores.of_dataset(workspace, dataset), policy, found)
    for entry in found:
        run.take(entry)
    return {
        "dataset": dataset,
        "policy": policy.to_json(),
        "decisions": run.decisions,
        "promotions": {
            "replayed": sum(row["promoted"] for row in run.decisions),
            "then": sum(row["then"]["promoted"] for row in run.decisions),
        },
        "champion": {"replayed": run.champion, "then": workspace.champion(dataset)},
        "gone": sum(row["gone"] is not None for row in run.decisions),
    }


def replay_text(found: Mapping[str, Any]) -> str:
    """The replay for a person."""
    lines = [f"{found['dataset']}, replayed with promote: {found['policy']['promote']}"]
    for row in found["decisions"]:
        then = "promoted" if row["then"]["promoted"] else row["then"]["decision"] or "as judged before"
        now = "not replayed" if row["gone"] else "promoted" if row["promoted"] else row["decision"]
        lines.append(f"  {row['number']}  {row['at'][:10]}  {row['model']}: {now} (then: {then}). {row['reason']}")
    numbers, champion = found["promotions"], found["champion"]
    lines.append(f"{numbers['replayed']} promotions, then {numbers['then']}; champion {champion['replayed']}, then {champion['then']}")
    if found["gone"]:
        lines.append(f"{found['gone']} of {len(found['decisions'])} judgements could not be replayed, and what happened then was taken")
    return "\n".join(lines)


class _Replay:
    """Goes through the entries of a ledger, and decides its judgements anew."""

    def __init__(self, kept: KeptScores, policy: PromotionPolicy, found: Sequence[Entry]) -> None:
        self.champion: str | None = None
        self.decisions: list[dict[str, Any]] = []
        self._kept = kept
        self._policy = policy
        self._promoted_then = _promoted(found)
        self._records: dict[int, Record] = {}
        self._judged: dict[str, int] = {}
        self._approved: set[str] = set()
        self._retired: set[str] = set()
        self._held = False
        self._decided: dict[tuple[str | None, str, tuple[str, ...]], Decision] = {}

    def take(self, entry: Entry) -> None:
        """Take the next entry into account."""
        model = entry.model
        if entry.event is Event.RELEASED:
            self._held = False
        elif entry.event is Event.PINNED:
            self._held = True
        elif model is None:
            return
        elif entry.event is Event.JUDGED and ("record" in entry.facts or "again" in entry.facts):
            self._judge(entry, model)
        elif entry.event is Event.APPROVED:
            self._approved.add(model)
        elif entry.event is Event.RETIRED:
            self._retired.add(model)
        elif entry.event is Event.DEMOTED and self.champion == model:
            self.champion = None
        elif entry.event is Event.ROLLED_BACK:
            self._held = True
            self._records[entry.number] = Record(at=entry.at, decision="promote", promoted=True, approved=True)
            self.champion = model
        elif entry.event is Event.PROMOTED and ("inputs" not in entry.facts or model in self._approved):
            known = self._records.pop(self._judged.pop(model, 0), Record(at=entry.at, decision="promote"))
            self._records[entry.number] = replace(known, at=entry.at, promoted=True, approved=True)
            self.champion = model

    def _judge(self, entry: Entry, model: str) -> None:
        promoted_then = entry.number in self._promoted_then
        then = {"champion": entry.before, "decision": entry.facts.get("decision"), "promoted": promoted_then}
        row = {"number": entry.number, "at": entry.at, "model": model, "champion": self.champion, "then": then, "gone": None}
        if model == self.champion:
            reason = "It is the champion already."
            row |= {**dict.fromkeys(_NUMBERS), "decision": "keep", "promoted": False, "reason": reason, "cases": 0}
        elif isinstance(cases := self._cases(entry, model), str):
            row |= {**dict.fromkeys(_NUMBERS), "decision": None, "reason": f"Not replayed: {cases}.", "cases": 0, "gone": cases}
            row["promoted"] = promoted_then
            record = Record.from_json(dict(entry.facts["record"])) if "record" in entry.facts else Record(at=entry.at, decision="keep")
            self._remember(entry, model, record, promoted=promoted_then)
        else:
            decided = self._decide(entry, model, cases)
            promoted = decided.decision == "promote" and not self._held and model not in self._retired
            held = " The champion was held, or the model retired." if decided.decision == "promote" and not promoted else ""
            told = decided.to_json()
            row |= {name: told[name] for name in (*_NUMBERS, "decision")}
            row |= {"promoted": promoted, "reason": decided.reason + held, "cases": decided.compared.cases if decided.compared else 0}
            self._remember(entry, model, decided.record, promoted=promoted)
        self.decisions.append(row)

    def _decide(self, entry: Entry, model: str, cases: Sequence[CaseScores]) -> Decision:
        """Decide about a model; as the step does, a model is not judged twice by the same scores."""
        scores = (self.champion, model, tuple(case.case for case in cases))
        if known := self._decided.get(scores):
            self._records.pop(self._judged.get(model, 0), None)  # it takes the new number
            return known
        records = [self._records[number] for number in sorted(self._records)]
        at = datetime.fromisoformat(entry.at)
        decided = self._decided[scores] = decide(self._policy, cases, records, at, withdrawn=self._withdrawn(entry.at))
        return decided

    def _remember(self, entry: Entry, model: str, record: Record, *, promoted: bool) -> None:
        self._judged[model] = entry.number
        self._records[entry.number] = replace(record, promoted=promoted)
        if promoted:
            self.champion = model

    def _cases(self, entry: Entry, model: str) -> list[CaseScores] | str:
        """Return the cases of that night, or why there are none."""
        challenger = self._kept.of(model)
        if isinstance(challenger, str):
            return challenger
        champion = None if self.champion is None else self._kept.of(self.champion)
        if isinstance(champion, str):
            return champion
        at = datetime.fromisoformat(entry.at)
        cases = [case for case in self._kept.pairs(champion, challenger) if case.since <= at]
        if champion is not None and not any(case.champion for case in cases):
            return f"models {self.champion} and {model} have no kept scores of a hold-out case of that night in common"
        return cases

    def _withdrawn(self, at: str) -> bool:
        """Whether the champion had been trained on cases that were withdrawn before that night."""
        if self.champion is None:
            return False
        seen = trained_on_withdrawn(self._kept.workspace.model_root(self.champion) / self._kept.dataset)
        return any(datetime.fromisoformat(case["at"]) <= datetime.fromisoformat(at) for case in seen.values())


def _promoted(found: Sequence[Entry]) -> set[int]:
    """Return the numbers of the judgements that a promotion followed, then."""
    judged: dict[tuple[str | None, Any], int] = {}
    numbers = set()
    for entry in found:
        key = (entry.model, entry.facts.get("inputs"))
        if entry.event is Event.JUDGED:
            judged[key] = entry.number
        elif entry.event is Event.PROMOTED and key in judged:
            numbers.add(judged[key])
    return numbers
