"""Compares two models of a dataset by their kept hold-out scores: Dice of both by label, and the paired difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.fitness import require_card
from nnunet_jobs.selection.gate.scores import Difference, by_label, difference
from nnunet_jobs.selection.kept import KeptScores, ModelScores

_ALPHA = 0.025
"""Probability on each side of the interval that is shown, which is one of 95 %."""


def compare_models(workspace: Workspace, dataset: str, model: str, other: str) -> dict[str, Any]:
    """Compare two models on the hold-out cases that neither has trained on and that both have kept scores of. Nothing is predicted.

    Args:
        workspace: Where the models are.
        dataset: Full name of the dataset.
        model: The model.
        other: The model that it is compared with.

    Returns:
        ``dataset``, ``model``, ``other``, ``holdout_cases`` (number of the dataset's labelled hold-out cases), ``seen`` (number that one
        of the models has trained on), ``without_scores`` (number of the others that lack scores), ``compared`` (over all labels) and
        ``labels`` (by name): each with the Dice of ``model`` and ``other``, ``gain``, its 95 % interval ``low`` and ``high``,
        ``patients`` and ``cases``.

    Raises:
        ConfigError: A model has no card or no kept scores, or both have none in common.
    """
    for name in (model, other):
        require_card(workspace, dataset, name)
    kept = KeptScores.of_dataset(workspace, dataset)
    ours, theirs = (_scores(kept, name) for name in (model, other))
    cases = [case for case in kept.pairs(theirs, ours) if case.champion]
    compared = difference(cases)
    if compared is None:
        problem = "has no kept scores of a hold-out case in common with the other model that neither has trained on"
        raise ConfigError(field="model", value=model, problem=problem, fix="select it again by FindBestConfigOperator")
    seen = sum(any(scores.seen.knows(case, kept.patients[case]) for scores in (ours, theirs)) for case in kept.cases)
    return {
        "dataset": dataset,
        "model": model,
        "other": other,
        "holdout_cases": len(kept.cases),
        "seen": seen,
        "without_scores": len(kept.cases) - seen - len(cases),
        "compared": _shown(compared),
        "labels": {name: _shown(found) for name, found in by_label(cases).items()},
    }


def comparison_text(found: Mapping[str, Any]) -> str:
    """The comparison for a person."""
    compared = found["compared"]
    lines = [
        f"{found['dataset']}: {found['model']} against {found['other']} on {compared['cases']} of {found['holdout_cases']} hold-out cases, "
        f"{compared['patients']} patients; difference with its 95 % interval",
        _row("label", found["model"], found["other"], "difference"),
        *(_line(name, row) for name, row in {"all": compared, **found["labels"]}.items()),
    ]
    for number, why in ((found["seen"], "one of the models has trained on them"), (found["without_scores"], "not both have kept scores")):
        if number:
            lines.append(f"left out: {number} cases, because {why}")
    return "\n".join(lines)


def _scores(kept: KeptScores, model: str) -> ModelScores:
    scores = kept.of(model)
    if isinstance(scores, str):
        raise ConfigError(field="model", value=model, problem=scores, fix="select it again by FindBestConfigOperator")
    return scores


def _shown(found: Difference) -> dict[str, Any]:
    data = found.to_json(_ALPHA)
    return {"model": data.pop("challenger"), "other": data.pop("champion"), **data}


def _line(name: str, row: Mapping[str, Any]) -> str:
    low, high = row["low"], row["high"]
    interval = "" if low is None else f" ({low:+.4f} to {high:+.4f})"
    return _row(name, f"{row['model']:.4f}", f"{row['other']:.4f}", f"{row['gain']:+.4f}{interval}")


def _row(label: str, model: str, other: str, gain: str) -> str:
    return f"  {label:20}  {model:18}  {other:18}  {gain}"
