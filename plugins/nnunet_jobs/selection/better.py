"""Decides whether a challenger is better than the champion, and compares only Dice over the same cases and labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.workspace import MODEL_CARD, Workspace

log = logging.getLogger("nnunet_jobs")


def better(workspace: Workspace, dataset: str, challenger: str, champion: str | None) -> bool:
    """Compare hold-out Dice if both were evaluated on the same cases, else cross-validation Dice after postprocessing.

    Both means are over the same labels: where one model's mean has labels that the other's lacks, those that both have are averaged.
    A challenger whose Dice is undefined is not better. One whose Dice is defined is better than a champion whose Dice is undefined.
    """
    path = workspace.model_root(champion) / dataset / MODEL_CARD if champion else None
    if path is None or not path.is_file():
        return True
    ours, theirs = workspace.model_card(dataset, challenger)["metrics"], read_json(path)["metrics"]
    same_cases = ours["holdout_hash"] is not None and ours["holdout_hash"] == theirs["holdout_hash"]
    pair = _comparable(ours, theirs, "holdout_dice", "holdout_per_label") if same_cases else None
    by = "hold-out Dice"
    if pair is None or None in pair:
        pair = _comparable(ours, theirs, "cv_dice_postprocessed", "cv_per_label_postprocessed")
        by = "cross-validation Dice"
    if pair is None:
        log.warning("%s: challenger %s and champion %s have no label in common; not promoted", by, challenger, champion)
        return False
    mine, other = pair
    log.info("%s of the challenger is %s, of the champion %s", by, _words(mine), _words(other))
    return mine is not None and (other is None or mine > other)


def _comparable(ours: Mapping[str, Any], theirs: Mapping[str, Any], mean: str, per_label: str) -> tuple[float | None, float | None] | None:
    """Return both means over the same labels; None if they have none in common. Cards of earlier versions may lack the labels."""
    mine, other = (_defined(metrics.get(per_label)) for metrics in (ours, theirs))
    if not mine or not other or set(mine) == set(other):
        return ours[mean], theirs[mean]
    common = sorted(set(mine) & set(other))
    if not common:
        return None
    log.info("compared over the labels that both models were judged by: %s", ", ".join(common))
    return _mean(mine, common), _mean(other, common)


def _defined(per_label: Mapping[str, float | None] | None) -> dict[str, float]:
    return {name: value for name, value in (per_label or {}).items() if value is not None}


def _mean(values: Mapping[str, float], names: list[str]) -> float:
    return math.fsum(values[name] for name in names) / len(names)


def _words(dice: float | None) -> str:
    return "undefined" if dice is None else f"{dice:.4f}"
