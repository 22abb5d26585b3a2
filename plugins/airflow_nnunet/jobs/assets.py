"""Assets that other DAGs wait for: a registered dataset and a promoted model. Events are sent only for real changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import Asset, AssetAlias

from nnunet_jobs.contract.steps.results import FindBestResult, RegisterResult

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

# The dataset's full name is only known when the job has ended. An alias is used until then.
REGISTERED = AssetAlias(name="nnunet_registered_datasets", group="nnunet")
PROMOTED = AssetAlias(name="nnunet_promoted_models", group="nnunet")


def dataset_asset(dataset: str) -> Asset:
    """Return the asset of a registered dataset, given its full name. It is updated when the dataset's content changes."""
    return Asset(name=f"nnunet dataset {dataset}", uri=f"nnunet://dataset/{dataset}", group="nnunet")


def model_asset(dataset: str) -> Asset:
    """Return the asset of a dataset's promoted model, given the full name. It is updated at each promotion."""
    return Asset(name=f"nnunet model {dataset}", uri=f"nnunet://model/{dataset}", group="nnunet")


def dataset_registered(context: Context, result: RegisterResult) -> None:
    """Send the dataset's event unless the run found nothing new."""
    if result.already_done:
        return
    extra: dict[str, JsonValue] = {
        "hash": result.hash,
        "train": result.train,
        "holdout": result.holdout,
        "added": result.added,
        "changed": result.changed,
        "removed": result.removed,
    }
    context["outlet_events"][REGISTERED].add(dataset_asset(result.dataset), extra=extra)


def model_promoted(context: Context, result: FindBestResult) -> None:
    """Send the model's event if this run promoted it, but not for a model that was promoted before."""
    if result.promoted:
        champion_changed(context, result.dataset, result.model, dice=result.holdout_dice, cv_dice=result.cv_dice)


def champion_changed(context: Context, dataset: str, model: str, *, dice: float | None, cv_dice: float | None) -> None:
    """Send the model's event: another model is the champion now.

    Args:
        context: Context of the task, which has :data:`PROMOTED` among its outlets.
        dataset: Full name of the dataset.
        model: Id of the champion.
        dice: Its Dice on the hold-out; None where there is none.
        cv_dice: Its Dice in cross-validation; None where there is none.
    """
    extra: dict[str, JsonValue] = {"model": model, "dice": dice, "cv_dice": cv_dice}
    context["outlet_events"][PROMOTED].add(model_asset(dataset), extra=extra)
