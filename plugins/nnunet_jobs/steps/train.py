"""Trains one fold of one configuration: resumes it where it stopped, validates it, and finally records it as complete."""

from __future__ import annotations

import os
import time
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import TrainParams
from nnunet_jobs.contract.steps.results import TrainResult
from nnunet_jobs.contract.storage.files import sha256_file, write_record
from nnunet_jobs.contract.storage.permissions import with_workspace_umask
from nnunet_jobs.contract.storage.withdrawals import only_consented, require_none_withdrawn, withdrawn_from
from nnunet_jobs.contract.storage.workspace import VERSIONS, Workspace
from nnunet_jobs.training import pretrained
from nnunet_jobs.training.cascade import require_previous_stage
from nnunet_jobs.training.fold import (
    SETTINGS_RECORD,
    configuration_entry,
    fold_cases,
    fold_folder,
    fold_identity,
    lock_path,
    model_id,
    model_settings,
    trainer_source,
)
from nnunet_jobs.training.fold_record import FoldState, inspect_fold, record_fold
from nnunet_jobs.training.withdraw import remove_files


@with_workspace_umask
def run(params: TrainParams, context: StepContext) -> dict[str, Any]:
    """Complete one fold, or find it complete.

    Returns:
        :class:`~nnunet_jobs.contract.steps.results.TrainResult` as a JSON object.

    Raises:
        ConfigError: Dataset, version, plans, configuration, fold, trainer or pretrained weights do not exist (the message
            names existing ones), or cases were withdrawn from the version, before or during the training.
        Interrupted: The job is to stop; the last iteration is saved.
    """
    begin = time.monotonic()
    workspace = context.workspace
    dataset = workspace.resolve_dataset(params.dataset)
    version = _version(params, workspace, dataset)
    version_root = workspace.preprocessed_root(version)
    require_none_withdrawn(version_root / dataset)
    entry = configuration_entry(version_root / dataset, params.plans, params.configuration)
    validation = _validation_cases(version_root / dataset, entry["data_identifier"], params)
    weights = pretrained.find(params, workspace)
    source = trainer_source(params.trainer, workspace.trainer_paths)
    hashes = {
        "pretrained_sha256": weights.identity if weights else None,
        "trainer_sha256": sha256_file(source) if source else None,
    }
    model = model_id(params, version, **hashes)
    model_root = workspace.model_root(model)
    os.environ.update(workspace.nnunet_environment(version=version, model=model))
    where: dict[str, Any] = {name: getattr(params, name) for name in ("trainer", "plans", "configuration", "fold")}
    folder = fold_folder(model_root, dataset, **where)

    def state() -> FoldState:
        return inspect_fold(model_root, version_root, dataset, **where, npz=params.npz)

    lock = lock_path(model_root, dataset, params.configuration, params.fold)
    with context.content_lock(lock, what=f"{dataset} {params.configuration} fold {params.fold}"):
        now, resumed = state(), None
        already_done = now.complete
        if not already_done:
            require_previous_stage(entry, params, version_root / dataset, model_root / dataset, validation)
            settings = model_root / dataset / SETTINGS_RECORD
            if not settings.is_file():
                settings.parent.mkdir(parents=True, exist_ok=True)
                write_record(settings, {**model_settings(params, version, **hashes), "torch": installed_version("torch")})
            from nnunet_jobs.training.fit import TrainingSetup, fit

            try:
                with only_consented(version_root / dataset):
                    identity = fold_identity(model, version_root / dataset, params)
                    resumed = fit(TrainingSetup(params=params, dataset=dataset, identity=identity, pretrained=weights), context)
                    record_fold(folder, version_root / dataset, params)
                    now = state()
            finally:
                remove_files(model_root / dataset, withdrawn_from(version_root / dataset))
    return TrainResult(
        dataset=dataset,
        version=version,
        model=model,
        trainer=params.trainer,
        plans=params.plans,
        configuration=params.configuration,
        fold=params.fold,
        path=str(folder),
        dice=now.dice,
        dice_per_label=now.dice_per_label,
        dice_on_training_cases=now.dice_on_training_cases,
        epochs=now.epochs,
        resumed_from=resumed,
        already_done=already_done,
        seconds=round(time.monotonic() - begin, 1),
    ).to_json()


def _version(params: TrainParams, workspace: Workspace, dataset: str) -> str:
    known = sorted(path.parent.name for path in (Path(workspace.preprocessed) / VERSIONS).glob(f"*/{dataset}"))
    version = params.version or workspace.current_version(dataset)
    if version is None:
        raise ConfigError(field="version", problem=f"{dataset} is not preprocessed", fix="run PreprocessOperator first")
    if not (workspace.preprocessed_root(version) / dataset).is_dir():
        raise ConfigError(
            field="version", value=version, problem=f"not a preprocessed version of {dataset}, which has: {', '.join(known) or 'none'}"
        )
    return version


def _validation_cases(dataset_folder: Path, data_identifier: str, params: TrainParams) -> list[str]:
    """Return the fold's validation cases, after checking that all its cases are preprocessed."""
    train, validation = fold_cases(dataset_folder, data_identifier, params.fold)
    folder = dataset_folder / data_identifier
    absent = [case for case in {*train, *validation} if not (folder / f"{case}.pkl").is_file()]
    if absent or not train or not validation:
        raise ConfigError(
            field="configuration",
            value=params.configuration,
            problem=(
                f"fold {params.fold} has {len(train)} training and {len(validation)} validation cases, "
                f"{len(absent)} of them not in {folder}"
            ),
            fix="run PreprocessOperator with this configuration",
        )
    return validation
