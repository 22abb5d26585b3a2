"""Finds out from the files of the workspace what a run still has to do, before any job starts."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from airflow_nnunet.jobs.exceptions import from_job_error
from airflow_nnunet.pipelines.dataset_config import CASCADE, TrainingConfig
from airflow_nnunet.pipelines.run_form import RunSettings
from airflow_nnunet.settings.resolver import resolve_config
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.base import StepResult
from nnunet_jobs.contract.steps.results import FindBestResult, PreprocessResult, RegisterResult
from nnunet_jobs.contract.storage.files import content_hash
from nnunet_jobs.contract.storage.predictions import model_folder, newest_folder, read_predictions
from nnunet_jobs.contract.storage.workspace import Workspace

Result = TypeVar("Result", bound=StepResult)
_SPLITS = {"holdout": ("holdout",), "imagesTs": ("holdout", "test")}


def result_of(kind: type[Result], value: Any, task_id: str) -> Result:
    """Return the result of an upstream task, from its XCom.

    Raises:
        ConfigError: The task has no result in this run, or a key of it is missing.
    """
    return kind.from_json(_written(value, task_id))


def settings_of(value: Any) -> RunSettings:
    """Return the run's settings, from the XCom of the task ``run_settings``.

    Raises:
        ConfigError: The task has no result in this run, or a key of it is missing.
    """
    return RunSettings.from_json(_written(value, "run_settings"))


def _written(value: Any, task_id: str) -> Any:
    if value is None:
        raise ConfigError(f"task {task_id} has no result in this DAG run; run it first, or test the whole DAG with airflow dags test")
    return value


def recipe_hash(config: TrainingConfig, settings: RunSettings, training_hash: str) -> str:
    """Return a hash of a training's inputs: the training cases and every setting that changes the result.

    The model card records it, so that a later run finds its work done. Settings of promotion and prediction are not
    included.
    """
    preprocess = config.preprocess.model_dump(exclude={"processes", "configurations"})
    train = {name: value for name, value in settings.train.items() if name not in ("plots", "checkpoint_every")}
    return content_hash(
        {
            "data": training_hash,
            "preprocess": preprocess,
            "train": train,
            "configurations": sorted(settings.configurations),
            "folds": sorted(map(str, settings.folds)),
            "ensembles": config.select.ensembles,
        }
    )


def require_champion(dataset: str | int | None) -> str:
    """Return the promoted model of a dataset, so that a run that needs one fails at its start.

    Args:
        dataset: Number or full name.

    Raises:
        InvalidConfig: The dataset is empty or not registered, or none of its models is promoted.
    """
    workspace = resolve_config().workspace
    try:
        if dataset is None or not str(dataset).strip():
            raise ConfigError(
                field="dataset", problem="is empty", fix="name one in the form, or give the parameter a default in the DAG file"
            )
        name = workspace.resolve_dataset(dataset)
        if (model := workspace.champion(name)) is None:
            raise ConfigError(field="dataset", value=dataset, problem=f"no model of {name} is promoted", fix="train and promote one first")
    except ConfigError as error:
        raise from_job_error(error) from error
    return model


def check_prediction(config: TrainingConfig, settings: RunSettings, workspace: Workspace) -> None:
    """Check before the training that the run's last step may read and write its folders.

    Raises:
        ConfigError: ``predict.output`` or ``predict.cases`` is outside the allowed folders.
    """
    if settings.predict == "none":
        return
    workspace.confine_output(prediction_output(config, settings, workspace), field="predict.output")
    if settings.predict not in _SPLITS:
        workspace.confine_input(settings.predict, field="predict.cases")


def plan_training(config: TrainingConfig, settings: RunSettings, registered: RegisterResult, workspace: Workspace) -> dict[str, Any] | None:
    """Return what the training tasks need, or None if a model of this data and recipe exists already.

    Returns:
        ``recipe``, ``configurations``, ``folds`` (to select by), ``promote``, ``trainer``.

    Raises:
        ConfigError: The model could not predict, see :func:`check_prediction`.
    """
    dataset = registered.dataset
    recipe = recipe_hash(config, settings, registered.training_hash)
    finished = [model for model, card in workspace.model_cards(dataset) if card.get("recipe") == recipe]
    wanted_promotion = settings.promote == "always" and workspace.champion(dataset) not in finished
    if finished and not wanted_promotion and not settings.force:
        return None
    check_prediction(config, settings, workspace)
    return {
        "recipe": recipe,
        "configurations": settings.configurations,
        "folds": settings.compared_folds,
        "promote": settings.promote,
        "trainer": settings.train["trainer"],
    }


def plan_folds(settings: RunSettings, preprocessed: PreprocessResult, *, cascade: bool = False) -> list[dict[str, Any]]:
    """Return the fields of a TrainFoldOperator for each fold of each configuration.

    Args:
        cascade: Whether to plan the cascade's second stage, which needs all low-resolution folds first, or all others.
    """
    common = {**settings.train, "version": preprocessed.version, "plans": preprocessed.plans}
    chosen = [configuration for configuration in settings.configurations if (configuration == CASCADE) == cascade]
    return [{"configuration": configuration, "fold": fold, **common} for configuration in chosen for fold in settings.folds]


def prediction_output(config: TrainingConfig, settings: RunSettings, workspace: Workspace) -> str:
    """Return the folder for predictions: the dataset file's, or ``<dataset>/<cases>`` below the first output root.

    Raises:
        ConfigError: No folder is given and there is no output root.
    """
    if config.predict.output:
        return config.predict.output
    if not workspace.output_roots:
        raise ConfigError("predict.output and output_roots in section [nnunet] are both empty; set one of them")
    return str(Path(workspace.output_roots[0]) / config.dataset_name / (Path(settings.predict).name or "cases"))


def plan_predictions(
    config: TrainingConfig, settings: RunSettings, registered: RegisterResult, best: FindBestResult | None, workspace: Workspace
) -> list[dict[str, Any]]:
    """Return BatchPredictOperator's fields for each part; empty if there is nothing to predict or all is predicted.

    The promoted model is used or, if there is none, the best model of this run.
    """
    dataset = registered.dataset
    model = workspace.champion(dataset) or (best.model if best else None)
    if settings.predict == "none" or model is None:
        return []
    output = prediction_output(config, settings, workspace)
    cases: list[str] | None = None
    if settings.predict in _SPLITS:
        manifest = workspace.manifest(dataset)
        cases = [case for case, entry in manifest["cases"].items() if entry["split"] in _SPLITS[settings.predict]]
        if not cases or (not settings.force and _predicted(config, Path(output), cases, _card(workspace, dataset, model), manifest)):
            return []
    parts = config.predict.parts if cases is None else min(config.predict.parts, len(cases))
    common = {"cases": settings.predict, "output_folder": output, "model": model, "parts": parts}
    return [{"part": part, **common} for part in range(parts)]


def _card(workspace: Workspace, dataset: str, model: str) -> Mapping[str, Any]:
    """Return a model's card, or an empty mapping."""
    return dict(workspace.model_cards(dataset)).get(model, {})


def _predicted(config: TrainingConfig, output: Path, cases: list[str], card: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Return whether the newest predictions are complete, by this model and settings, and newer than the data."""
    model = card.get("model")
    if not model or newest_folder(output) != model_folder(output, model, card["hash"]).resolve():
        return False
    known = read_predictions(output)
    if not known:
        return False
    wanted = config.predict.model_dump(include={"mirroring", "step_size", "postprocessing", "probabilities", "fast"})
    wanted["fast"] = sorted(set(wanted["fast"]))  # as the step records them
    changed = max((dt.datetime.fromisoformat(entry["at"]) for entry in manifest["history"]), default=dt.datetime.min.replace(tzinfo=dt.UTC))
    if known["model"] != model or {"fast": [], **known["settings"]} != wanted or dt.datetime.fromisoformat(known["updated"]) < changed:
        return False
    entries = known["cases"]
    return all(
        case in entries
        and entries[case].get("model") == model
        and (entries[case]["status"] == "failed" or os.path.isfile(output / entries[case]["file"]))
        for case in cases
    )
