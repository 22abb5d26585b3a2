"""Finds the trained model that the parameters of a selection mean, and refuses what cannot be selected from."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import FindBestParams
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.withdrawals import listed, require_none_withdrawn, trained_on_withdrawn
from nnunet_jobs.contract.storage.workspace import VERSIONS, Workspace
from nnunet_jobs.selection.trained import ALL, Trained
from nnunet_jobs.training.fold import SETTINGS_RECORD, configuration_entry, read_json_or_empty
from nnunet_jobs.training.fold_record import FOLD_RECORD

log = logging.getLogger("nnunet_jobs")


class OnlyFoldAll(ConfigError):
    """Only fold ``all`` of the model is trained, so that there is no cross-validation."""


def find_trained(params: FindBestParams, workspace: Workspace, dataset: str) -> Trained:
    """Find the model that the parameters name, or the newest one of the dataset whose folds are complete.

    Raises:
        ConfigError: There is no such model, or it has none of the configurations; names those that exist.
    """
    models = [params.model] if params.model else _models(params, workspace, dataset)
    if not models:
        raise ConfigError(
            field="model",
            problem=f"nothing is trained for {dataset} with trainer {params.trainer} and plans {params.plans}",
            fix="run TrainFoldOperator first",
        )
    found, refused = [], []
    for model in models:
        try:
            found.append(_trained(params, workspace, dataset, model))
        except ConfigError as error:
            refused.append(error)
    if not found and params.promote == "always" and params.folds != [ALL] and any(isinstance(error, OnlyFoldAll) for error in refused):
        log.warning("nothing but fold 'all' is trained: taken as it is, without a cross-validation, because promote is 'always'")
        return find_trained(replace(params, folds=[ALL]), workspace, dataset)
    if not found:
        raise refused[0]
    if len(found) > 1:
        for trained in found:
            if not any(trained.incomplete(ensembles=False)):  # missing probabilities can be repaired; the newest training counts
                return trained
    return found[0]


def _models(params: FindBestParams, workspace: Workspace, dataset: str) -> list[str]:
    """Return the models of the dataset with this trainer and plans, the one with the newest folds first."""
    found = []
    for path in (Path(workspace.results) / VERSIONS).glob(f"*/{dataset}/{SETTINGS_RECORD}"):
        settings = read_json(path)
        folds = [item.stat().st_mtime_ns for item in path.parent.glob(f"{params.trainer}__{params.plans}__*/fold_*/{FOLD_RECORD}")]
        if (settings["trainer"], settings["plans"]) == (params.trainer, params.plans):
            found.append((max(folds, default=0), path.stat().st_mtime_ns, path.parent.parent.name))
    return [model for *_, model in sorted(found, reverse=True)]


def _trained(params: FindBestParams, workspace: Workspace, dataset: str, model: str) -> Trained:
    root = workspace.model_root(model) / dataset
    if not (root / SETTINGS_RECORD).is_file():
        known = ", ".join(path.parent.parent.name for path in (root.parent.parent).glob(f"*/{dataset}/{SETTINGS_RECORD}")) or "none"
        raise ConfigError(field="model", value=model, problem=f"not a trained model of {dataset}, which has: {known}")
    settings = read_json(root / SETTINGS_RECORD)
    settings.pop("schema", None)  # it describes the file, not the training
    for name in ("trainer", "plans"):
        if settings[name] != getattr(params, name):
            raise ConfigError(
                field=name, value=getattr(params, name), problem=f"model {model} was trained with {settings[name]!r}", fix="name that one"
            )
    version = settings["version"]
    preprocessed = workspace.preprocessed_root(version) / dataset
    if not preprocessed.is_dir():
        raise ConfigError(field="model", value=model, problem=f"its preprocessed version {version} is gone", fix="train on the current one")
    if seen := trained_on_withdrawn(root):
        raise ConfigError(
            field="model", value=model, problem=f"{listed(seen)} withdrawn since it was trained on", fix="train on a new version"
        )
    require_none_withdrawn(preprocessed)
    if len(set(params.folds)) != len(params.folds):
        raise ConfigError(field="folds", value=params.folds, problem="name each fold once")
    known_configurations = read_json_or_empty(preprocessed / f"{params.plans}.json").get("configurations", {})
    prefix = f"{params.trainer}__{params.plans}__"
    on_all = [name for name in known_configurations if (root / f"{prefix}{name}" / f"fold_{ALL}").is_dir()]
    numbered = {path.parent.name.removeprefix(prefix) for path in root.glob(f"{prefix}*/fold_[0-9]*")}
    if not numbered and on_all and params.folds != [ALL]:
        raise OnlyFoldAll(
            f"model={model!r}: only fold 'all' is trained ({', '.join(on_all)}), and it has no cross-validation to select by; train folds "
            f"{', '.join(map(str, params.folds))} too, or take it as it is with promote='always' (its card says that it was not validated)"
        )
    present = on_all if params.folds == [ALL] else numbered
    configurations = params.configurations or [name for name in known_configurations if name in present]
    for name in configurations:
        configuration_entry(preprocessed, params.plans, name)
    if len(set(configurations)) != len(configurations):
        raise ConfigError(field="configurations", value=params.configurations, problem="name each configuration once")
    if not configurations:
        what = "fold 'all' of no configuration is trained" if params.folds == [ALL] else "no configuration is trained"
        raise ConfigError(field="model", value=model, problem=what, fix="run TrainFoldOperator first")
    if params.folds == [ALL] and len(configurations) > 1:
        raise ConfigError(
            field="configurations",
            value=configurations,
            problem="fold 'all' has no cross-validation, so nothing says which of them is the best",
            fix="name one",
        )
    trained = Trained(
        dataset=dataset,
        model=model,
        version=version,
        trainer=params.trainer,
        plans=params.plans,
        root=root,
        preprocessed=preprocessed,
        configurations=tuple(configurations),
        folds=tuple(sorted(params.folds, key=str if params.folds == [ALL] else int)),
        settings=settings,
    )
    for name in trained.with_previous_stages():
        trained.validation_cases(name)  # raises for a fold that the splits do not have, which would otherwise be reported as not trained
    return trained
