"""Compares complete folds, postprocesses the best, evaluates it on the hold-out, writes its card, and promotes it."""

from __future__ import annotations

import logging
import os
import shutil
from typing import Any

from nnunet_jobs.context import StepContext, acting
from nnunet_jobs.contract.steps.params import FindBestParams
from nnunet_jobs.contract.steps.results import FindBestResult
from nnunet_jobs.contract.storage.files import content_hash, write_json
from nnunet_jobs.contract.storage.permissions import with_workspace_umask
from nnunet_jobs.contract.storage.withdrawals import only_consented
from nnunet_jobs.contract.storage.workspace import MODEL_CARD
from nnunet_jobs.prediction.quality import REFERENCE
from nnunet_jobs.registry.promotion import promote_if
from nnunet_jobs.selection import card as cards
from nnunet_jobs.selection import holdout, holdout_scores
from nnunet_jobs.selection.commands import inference_information, member
from nnunet_jobs.selection.completeness import require_complete
from nnunet_jobs.selection.find_trained import find_trained
from nnunet_jobs.selection.judge import Judge, Judged
from nnunet_jobs.selection.seen import write_seen
from nnunet_jobs.selection.trained import Trained
from nnunet_jobs.selection.undefined import undefined

log = logging.getLogger("nnunet_jobs")
_RULES = 2
"""Number of the rules of averaging and postprocessing: a card that was made under other rules is made again."""


@with_workspace_umask
def run(params: FindBestParams, context: StepContext) -> dict[str, Any]:
    """Choose the best of a model's configurations and pairs of them, or find it chosen.

    Returns:
        :class:`~nnunet_jobs.contract.steps.results.FindBestResult` as a JSON object.

    Raises:
        ConfigError: No such model; or folds are not complete and cannot be repaired: names configuration, fold and
            reason; or cases that it was trained on were withdrawn.
        DataError: A hold-out case differs from the manifest or cannot be predicted.
        Interrupted: Told to stop; the former card stays.
    """
    workspace = context.workspace
    dataset = workspace.resolve_dataset(params.dataset)
    trained = find_trained(params, workspace, dataset)
    os.environ.update(workspace.nnunet_environment(version=trained.version, model=trained.model))
    lock = trained.root.parent / ".locks" / f"{dataset}-selection.lock"
    with context.content_lock(lock, what=f"the selection of {dataset}"), only_consented(trained.preprocessed):
        require_complete(trained, params, context)
        held = holdout.find_holdout(trained, context)
        write_seen(trained, workspace)
        inputs = _inputs(trained, params, held)
        card = cards.finished_card(trained, inputs)
        already_done = card is not None
        if card is None:
            card = _select(trained, params, held, inputs, context)
        else:
            if not (trained.root / REFERENCE).is_file():  # selected by a version that had none
                from nnunet_jobs.selection.reference import write_reference

                write_reference(trained, card["metrics"]["cv_dice_postprocessed"], context)
            card = _up_to_date(card, trained, held, params, context)
    context.check_stop()
    judge = Judge(workspace=workspace, dataset=dataset, model=trained.model, policy=params.policy(), held=held, context=context)

    def decide(champion: str | None) -> Judged:
        judged = judge(champion)
        known = workspace.model_card(dataset, trained.model)
        if known.get("decision", {}).get("inputs") != judged.facts["inputs"]:  # a card that was made again has none
            cards.write_card(trained, {**known, "decision": {**judged.decision, "acting": acting(context)}})
        return judged

    record = context.job.path / "promotion.json"
    promotion = promote_if(workspace, dataset, trained.model, decide, by=_who(context), record=record)
    log.info("%s", promotion.why)
    metrics = card["metrics"]
    decision = workspace.model_card(dataset, trained.model).get("decision", {})
    return FindBestResult(
        dataset=dataset,
        model=trained.model,
        choice=metrics["choice"],
        cv_dice=metrics["cv_dice"],
        cv_dice_postprocessed=metrics["cv_dice_postprocessed"],
        holdout_dice=metrics["holdout_dice"],
        holdout_dice_per_label=metrics["holdout_per_label"],
        promoted=promotion.promoted,
        is_champion=promotion.is_champion,
        card=str(trained.root / MODEL_CARD),
        already_done=already_done,
        decision=decision.get("decision"),
        reason=decision.get("reason", promotion.why) if promotion.is_champion else promotion.why,
        champion_before=decision.get("champion_before"),
        gain=decision.get("gain"),
        expected_gain=decision.get("expected_gain"),
        compared_cases=decision.get("cases", 0),
    ).to_json()


def _who(context: StepContext) -> str:
    """Return the DAG run that the step works for, or its job, as the ledger names it."""
    known = acting(context)
    return f"DAG {known['dag_id']}, run {known['run_id']}" if {"dag_id", "run_id"} <= known.keys() else f"job {context.job.job_id}"


def _up_to_date(
    card: dict[str, Any], trained: Trained, held: holdout.Holdout, params: FindBestParams, context: StepContext
) -> dict[str, Any]:  # fmt: skip
    """The finished card with this run's recipe and tolerances; written where that changes it."""
    from nnunet_jobs.selection.measured import measured_again

    measured = measured_again(card, trained, held, params, context)
    if measured is None and card["recipe"] == params.recipe:
        return card
    card = {**(measured or card), "recipe": params.recipe}
    cards.write_card(trained, card)
    return card


def _inputs(trained: Trained, params: FindBestParams, held: holdout.Holdout) -> str:
    return content_hash(
        {
            "folds": trained.fingerprint(),
            "configurations": list(trained.configurations),
            "ensembles": params.ensembles,
            "holdout": held.hash,
            "rules": _RULES,
        }
    )


def _select(trained: Trained, params: FindBestParams, held: holdout.Holdout, inputs: str, context: StepContext) -> dict[str, Any]:
    held.verify()
    context.check_stop()
    if not trained.cross_validated:
        from nnunet_jobs.selection.unvalidated import take_as_it_is

        return take_as_it_is(trained, held, params, inputs=inputs, context=context)
    from nnunet_jobs.selection import compare, ensemble, measured, postprocessing
    from nnunet_jobs.selection.reference import write_reference

    reference = compare.Reference(trained, context)
    tolerance_mm = measured.label_tolerances(reference, params.tolerance_mm)
    pairs = list(ensemble.pairs(trained)) if params.ensembles else []
    total = len(trained.configurations) + len(pairs)
    candidates: list[compare.Candidate] = []
    for configuration in trained.configurations:
        context.check_stop()
        context.progress("compare", len(candidates), total, configuration=configuration)
        candidates.append(compare.single(trained, configuration, reference))
    for pair in pairs:
        context.check_stop()
        context.progress("compare", len(candidates), total, configuration=" + ".join(pair))
        candidates.append(ensemble.ensemble(trained, pair, reference, context))
    chosen = compare.best(candidates)
    processed = postprocessing.determine(chosen, reference, context)
    for name in postprocessing.FILES:
        shutil.copy(chosen.folder / name, trained.root / name)
    cv_dice, cv_per_label = compare.dice_by_label(chosen.folder, reference.dataset_json)
    post_dice, post_per_label = compare.dice_by_label(processed.folder, reference.dataset_json)
    write_json(trained.root / "inference_information.json", inference_information(trained, candidates, chosen, post_dice))
    selection = {
        "members": [member(trained, configuration) for configuration in chosen.configurations],
        "postprocessing": [dict(step) for step in processed.steps],
    }
    files = cards.predicting_files(trained, selection["members"], context)
    card = cards.make_card(trained, selection=selection, files=files, recipe=params.recipe, inputs=inputs)
    write_reference(trained, post_dice, context)
    context.progress("holdout", 0, len(held.cases))
    judged = holdout_scores.evaluate(cards.selected(card, trained.root), held, context)
    card["metrics"] = {
        "choice": chosen.name,
        "cv_dice": cv_dice,
        "cv_per_label": cv_per_label,
        "cv_dice_postprocessed": post_dice,
        "cv_per_label_postprocessed": post_per_label,
        "cv_cases": len(chosen.cases),
        "holdout_dice": judged["mean"] if judged else None,
        "holdout_per_label": judged["per_label"] if judged else None,
        "holdout_cases": len(held.cases),
        "holdout_hash": held.hash,
        "surfaces": measured.measure(processed.folder, held, trained, reference, tolerance_mm, context),
        "undefined_labels": undefined(cv_per_label, judged["per_label"] if judged else {}),
        "postprocessing_declined": [dict(step) for step in processed.declined],
        "candidates": {candidate.name: candidate.dice for candidate in candidates},
    }
    cards.write_card(trained, card)
    context.progress("selected", choice=chosen.name, dice=cv_dice, dice_postprocessed=post_dice)
    return card
