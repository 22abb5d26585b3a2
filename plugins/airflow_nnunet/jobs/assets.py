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
    if not result.promoted:
        return
    extra: dict[str, JsonValue] = {"model": result.model, "dice": result.holdout_dice, "cv_dice": result.cv_dice}
    context["outlet_events"][PROMOTED].add(model_asset(result.dataset), extra=extra)
