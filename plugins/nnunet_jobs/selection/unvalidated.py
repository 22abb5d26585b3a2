"""Selects a model that was trained on all cases (fold ``all``) without a comparison, and says so in its card."""

from __future__ import annotations

import logging
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.steps.params import FindBestParams
from nnunet_jobs.selection import card as cards
from nnunet_jobs.selection import holdout, holdout_scores
from nnunet_jobs.selection.commands import member
from nnunet_jobs.selection.compare import Reference
from nnunet_jobs.selection.measured import label_tolerances, measure
from nnunet_jobs.selection.postprocessing import FILES
from nnunet_jobs.selection.reference import write_reference
from nnunet_jobs.selection.trained import Trained
from nnunet_jobs.selection.undefined import undefined

log = logging.getLogger("nnunet_jobs")


def take_as_it_is(
    trained: Trained, held: holdout.Holdout, params: FindBestParams, *, inputs: str, context: StepContext
) -> dict[str, Any]:  # fmt: skip
    """Write the card of one configuration's fold ``all``. Dice is known only for the hold-out, which was never trained on.

    Args:
        inputs: Hash of all that the card is made from.
    """
    (configuration,) = trained.configurations
    log.warning("%s: fold 'all' of %s has no cross-validation; its card says so", trained.model, configuration)
    for name in (*FILES, "inference_information.json"):  # of an earlier selection by cross-validation
        (trained.root / name).unlink(missing_ok=True)
    selection = {"members": [member(trained, configuration)], "postprocessing": []}
    files = cards.predicting_files(trained, selection["members"], context)
    card = cards.make_card(trained, selection=selection, files=files, recipe=params.recipe, inputs=inputs)
    reference = Reference(trained, context)
    tolerance_mm = label_tolerances(reference, params.tolerance_mm)
    write_reference(trained, None, context)
    context.progress("holdout", 0, len(held.cases))
    judged = holdout_scores.evaluate(cards.selected(card, trained.root), held, context)
    name = trained.folder(configuration).name
    card["metrics"] = {
        "choice": name,
        **dict.fromkeys(("cv_dice", "cv_per_label", "cv_dice_postprocessed", "cv_per_label_postprocessed")),
        "cv_cases": 0,
        "holdout_dice": judged["mean"] if judged else None,
        "holdout_per_label": judged["per_label"] if judged else None,
        "holdout_cases": len(held.cases),
        "holdout_hash": held.hash,
        "surfaces": measure(None, held, trained, reference, tolerance_mm, context),
        "undefined_labels": undefined({}, judged["per_label"] if judged else {}),
        "postprocessing_declined": [],
        "candidates": {name: None},
    }
    cards.write_card(trained, card)
    context.progress("selected", choice=name, dice=None)
    return card
