"""Judges a challenger against the champion: the same cases for both, scores that are kept, the gate's decision, and the model's card."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.steps.promotion import PromotionPolicy
from nnunet_jobs.contract.storage.files import content_hash, read_json
from nnunet_jobs.contract.storage.withdrawals import listed, trained_on_withdrawn
from nnunet_jobs.contract.storage.workspace import MODEL_CARD, Workspace
from nnunet_jobs.dataset.names import split_ending
from nnunet_jobs.prediction.model import model_from_card
from nnunet_jobs.registry.ledger import entries
from nnunet_jobs.selection.commands import postprocessed_folder
from nnunet_jobs.selection.decisions import judged_before, records_of
from nnunet_jobs.selection.gate.decision import decide
from nnunet_jobs.selection.gate.scores import CaseScores, Dice, difference
from nnunet_jobs.selection.holdout import Holdout
from nnunet_jobs.selection.holdout_scores import scores
from nnunet_jobs.selection.seen import patients, read_seen
from nnunet_jobs.training.fold_record import label_dice

log = logging.getLogger("nnunet_jobs")
HOLD_OUT, CROSS_VALIDATION = "hold-out", "cross-validation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What was found of a challenger.

    Attributes:
        promote: Whether the gate promotes it.
        why: The reason in a sentence.
        facts: What the ledger and the card keep, numbers and labels, no case ids: the gate's answer, ``by`` (``hold-out``, or
            ``cross-validation`` where no hold-out case is left that neither model has trained on), ``champion_before``, and ``inputs``,
            the hash of all that the decision depends on but the time. Of a model that was judged before, ``again`` and ``inputs``.
        decision: The same for the card, also of a model that was judged before.
    """

    promote: bool
    why: str
    facts: Mapping[str, Any]
    decision: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Judges one challenger by one policy.

    Attributes:
        workspace: Where the models are.
        dataset: Full name of the dataset.
        model: Model id of the challenger, whose card is written.
        policy: When it is promoted.
        held: Hold-out cases that the challenger has not trained on.
        context: Device, cores, stop request and signs of life.
    """

    workspace: Workspace
    dataset: str
    model: str
    policy: PromotionPolicy
    held: Holdout
    context: StepContext

    def __call__(self, champion: str | None) -> Judged:
        """Judge the challenger against a champion, or as the first model of its dataset where there is none.

        Raises:
            DataError: A hold-out case cannot be predicted by one of the models.
        """
        before = champion
        if champion is not None and not (self.workspace.model_root(champion) / self.dataset / MODEL_CARD).is_file():
            log.warning("champion %s has no card, so that nobody can predict with it; it is no champion to beat", champion)
            champion = None
        by, cases = HOLD_OUT, self._held_out(champion)
        if champion is not None and difference(cases) is None:
            by, cases = CROSS_VALIDATION, self._cross_validated(champion)
        seen = trained_on_withdrawn(self.workspace.model_root(champion) / self.dataset) if champion else {}
        if seen:
            log.warning(
                "champion %s: %s withdrawn since it was trained on; it is replaced by the first clean model", champion, listed(seen)
            )
        inputs = self._inputs(champion, cases, withdrawn=sorted(seen))
        found = entries(self.workspace, self.dataset)
        if known := judged_before(found, self.model, inputs):
            log.info("model %s was judged by the same scores on %s", self.model, str(known["record"]["at"])[:10])
            facts = {"inputs": inputs, "again": True}
            return Judged(promote=known["decision"] == "promote", why=str(known["reason"]), facts=facts, decision=known)
        first = False if champion and not seen else None
        decision = decide(self.policy, cases, records_of(found), datetime.now(UTC), withdrawn=bool(seen), kind=by, first=first)
        facts = {"by": by, "champion_before": before, "inputs": inputs, **decision.to_json()}
        return Judged(promote=decision.decision == "promote", why=decision.reason, facts=facts, decision=facts)

    def _held_out(self, champion: str | None) -> list[CaseScores]:
        manifest = self.workspace.manifest(self.dataset)
        groups = patients(manifest)
        known = [seen for model in (self.model, champion) if model and (seen := read_seen(self.workspace, self.dataset, model))]
        if champion and len(known) < 2:
            log.warning("nothing says what champion %s was trained on, so no hold-out case is taken for unseen", champion)
            return []
        fair = {case: entry for case, entry in self.held.cases.items() if not any(seen.knows(case, groups[case]) for seen in known)}
        held = replace(self.held, cases=fair)
        since = arrivals(manifest)
        challenger = self._scores(self.model, held)
        other = self._scores(champion, held) if champion and not self._indifferent else {}
        return [
            CaseScores(
                case=case, group=groups[case], since=since[case], champion=other.get(case, {}), challenger=challenger[case], anchor={}
            )
            for case in held.cases
        ]  # fmt: skip

    @property
    def _indifferent(self) -> bool:
        """Whether the policy does not look at scores, so that the champion need not be predicted again."""
        return self.policy.promote in ("always", "never")

    def _scores(self, model: str, held: Holdout) -> dict[str, Dice]:
        if not held.cases:
            return {}
        root = self.workspace.model_root(model) / self.dataset
        selected = model_from_card(self.workspace.model_card(self.dataset, model), root=root, model=model)
        return {case: record["dice"] for case, record in scores(selected, held, self.context).items()}

    def _cross_validated(self, champion: str) -> list[CaseScores]:
        """Compare out-of-fold predictions of the training cases that both models have, each made by folds that had not seen the case."""
        manifest = self.workspace.manifest(self.dataset)
        since, groups = arrivals(manifest), patients(manifest)
        chosen_at = datetime.fromisoformat(self.workspace.model_card(self.dataset, champion)["created"])
        challenger, other = (cross_validation_dice(self.workspace, self.dataset, model) for model in (self.model, champion))
        return [
            CaseScores(
                case=case, group=groups[case], since=since[case], champion=other[case], challenger=challenger[case], anchor={}
            )
            for case in manifest["cases"]
            if case in challenger and case in other and since[case] <= chosen_at
        ]  # fmt: skip

    def _inputs(self, champion: str | None, cases: Sequence[CaseScores], withdrawn: Sequence[str]) -> str:
        models = [self.workspace.model_card(self.dataset, model)["hash"] for model in (self.model, champion) if model]
        scored = [[case.case, case.group, dict(case.champion), dict(case.challenger)] for case in cases]
        return content_hash([self.policy.to_json(), models, scored, withdrawn])


def arrivals(manifest: Mapping[str, Any]) -> dict[str, datetime]:
    """Give the time since when each case is as it is now: when it was added, changed or moved between training and hold-out."""
    history = manifest["history"]
    begin = datetime.fromisoformat(history[0]["at"]) if history else datetime.min.replace(tzinfo=UTC)
    since = dict.fromkeys(manifest["cases"], begin)
    for line in history:
        at = datetime.fromisoformat(line["at"])
        for what in ("added", "changed", "moved"):
            since |= {case: at for case in line["cases"].get(what, ()) if case in since}
    return since


def cross_validation_dice(workspace: Workspace, dataset: str, model: str) -> dict[str, dict[str, float | None]]:
    """Give the Dice by case and label name of a model's choice, cross-validated and postprocessed; empty where there is none."""
    root = workspace.model_root(model) / dataset
    try:
        folder = postprocessed_folder(root)
        summary = read_json(folder / "summary.json")
        labels = read_json(folder.parent / "dataset.json")["labels"]
    except FileNotFoundError:  # trained on all cases, without a cross-validation
        return {}
    return {
        split_ending(Path(entry["prediction_file"]).name)[0]: label_dice(entry["metrics"], labels) for entry in summary["metric_per_case"]
    }
