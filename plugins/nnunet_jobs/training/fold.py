"""Names the model of a fold, writes the record that makes a fold complete, and checks that it still is.

Nothing here imports torch, so that the check takes milliseconds.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import TrainParams
from nnunet_jobs.contract.storage.files import content_hash, read_json

SETTINGS_RECORD = "settings.json"
NEXT_STAGE = "predicted_next_stage"  # nnU-Net's folder beside the folds, for the training of a cascade's next stage
# Settings that change the weights. npz, checkpoint_every and plots only change which further files are kept.
SETTINGS = ("epochs", "iterations", "val_iterations", "optimizer", "initial_lr", "mirroring", "early_stop", "seed")


def model_settings(
    params: TrainParams, version: str, *, pretrained_sha256: str | None = None, trainer_sha256: str | None = None
) -> dict[str, Any]:
    """Return all settings that identify a model, as JSON. They are the same for all configurations and folds of a run."""
    return {
        "version": version,
        "trainer": params.trainer,
        "trainer_sha256": trainer_sha256,
        "plans": params.plans,
        **{name: getattr(params, name) for name in SETTINGS},
        "pretrained_sha256": pretrained_sha256,
        "nnunetv2": installed_version("nnunetv2"),
    }


def model_id(params: TrainParams, version: str, *, pretrained_sha256: str | None = None, trainer_sha256: str | None = None) -> str:
    """Return the name of the model: a content hash of :func:`model_settings`."""
    return content_hash(model_settings(params, version, pretrained_sha256=pretrained_sha256, trainer_sha256=trainer_sha256))


def trainer_source(trainer: str, trainer_paths: Sequence[str]) -> Path | None:
    """Return the file of a user's trainer class; None for nnU-Net's classes, which its version identifies and which precede others.

    Raises:
        ConfigError: There is no class of that name in nnU-Net or below ``trainer_paths``.
    """
    definition = re.compile(rf"^class {re.escape(trainer)}\b", re.MULTILINE)
    spec = importlib.util.find_spec("nnunetv2")
    stock = [Path(folder) / "training" / "nnUNetTrainer" for folder in (spec.submodule_search_locations or ())] if spec else []
    for root in (*stock, *map(Path, trainer_paths)):
        for path in sorted(root.rglob("*.py")):
            if definition.search(path.read_text(errors="replace")):
                return None if root in stock else path
    places = ", ".join(trainer_paths) or "none configured"
    raise ConfigError(field="trainer", value=trainer, problem=f"not a class of nnU-Net nor of the trainer paths ({places})")


def configuration_folder(model_root: Path, dataset: str, *, trainer: str, plans: str, configuration: str) -> Path:
    """Return nnU-Net's folder of one trained configuration."""
    return model_root / dataset / f"{trainer}__{plans}__{configuration}"


def fold_folder(model_root: Path, dataset: str, *, trainer: str, plans: str, configuration: str, fold: int | str) -> Path:
    """Return nnU-Net's folder of one fold."""
    return configuration_folder(model_root, dataset, trainer=trainer, plans=plans, configuration=configuration) / f"fold_{fold}"


def fold_cases(dataset_folder: Path, data_identifier: str, fold: int | str) -> tuple[list[str], list[str]]:
    """Return (training, validation) cases of a fold of a preprocessed dataset; for ``all``, both are all cases.

    Raises:
        ConfigError: The fold does not exist; names the available ones. nnU-Net itself would make a random split.
    """
    splits = read_json(dataset_folder / "splits_final.json")
    if fold == "all":
        cases = sorted(path.name.removesuffix("_seg.b2nd") for path in (dataset_folder / data_identifier).glob("*_seg.b2nd"))
        return cases, cases
    if not 0 <= int(fold) < len(splits):
        raise ConfigError(
            field="fold", value=fold, problem=f"the splits have folds 0 to {len(splits) - 1}", fix="use one of these, or 'all'"
        )
    split = splits[int(fold)]
    return sorted(split["train"]), sorted(split["val"])


def inputs_hash(dataset_folder: Path, *, plans: str, configuration: str, fold: int | str) -> str:
    """Return a hash of what a fold is trained on: plans, dataset.json, split, and the content key of every case."""
    entry = configuration_entry(dataset_folder, plans, configuration)
    train, val = fold_cases(dataset_folder, entry["data_identifier"], fold)
    version_file = dataset_folder / "version.json"
    keys = read_json(version_file).get("cases", {}).get(entry["data_identifier"]) if version_file.is_file() else None
    documents = [read_json(dataset_folder / f"{plans}.json"), read_json(dataset_folder / "dataset.json")]
    return content_hash([documents, configuration, train, val, keys])


def fold_identity(model: str, dataset_folder: Path, params: TrainParams) -> dict[str, Any]:
    """Return the identity in every checkpoint of a fold; only a checkpoint of the same model, fold and inputs is resumed."""
    inputs = inputs_hash(dataset_folder, plans=params.plans, configuration=params.configuration, fold=params.fold)
    return {"model": model, "configuration": params.configuration, "fold": params.fold, "inputs": inputs}


def configuration_entry(dataset_folder: Path, plans: str, configuration: str) -> dict[str, Any]:
    """Return the plans' entry of a configuration, with what it inherits.

    Raises:
        ConfigError: The plans or the configuration do not exist; names the available ones.
    """
    path = dataset_folder / f"{plans}.json"
    if not path.is_file():
        found = [item.stem for item in sorted(dataset_folder.glob("*.json")) if "configurations" in read_json_or_empty(item)]
        raise ConfigError(field="plans", value=plans, problem=f"not in this preprocessed version, which has: {', '.join(found) or 'none'}")
    configurations = read_json(path)["configurations"]
    if configuration not in configurations:
        raise ConfigError(field="configuration", value=configuration, problem=f"not in {plans}, which has: {', '.join(configurations)}")
    merged: dict[str, Any] = {}
    name: str | None = configuration
    while name is not None:
        merged = {**configurations[name], **merged}
        name = configurations[name].get("inherits_from")
    return merged


def next_stages(entry: Mapping[str, Any]) -> list[str]:
    """Return the configurations that are trained on this one's predictions, as nnU-Net reads the plans' entry."""
    named = entry.get("next_stage") or []
    return [named] if isinstance(named, str) else list(named)


def next_stage_name(stage: str, case: str) -> str:
    """Return the path of a case's prediction for the next stage, relative to the folder of a fold."""
    return f"../{NEXT_STAGE}/{stage}/{case}.b2nd"


def next_stage_names(dataset_folder: Path, plans: str, configuration: str, cases: Sequence[str]) -> list[str]:
    """Return the files that a fold with these validation cases leaves for the next stages, for cases preprocessed for them."""
    return [
        next_stage_name(stage, case)
        for stage in next_stages(configuration_entry(dataset_folder, plans, configuration))
        for case in cases
        if (dataset_folder / configuration_entry(dataset_folder, plans, stage)["data_identifier"] / f"{case}.pkl").is_file()
    ]


def read_json_or_empty(path: Path) -> Mapping[str, Any]:
    """Read a JSON object; return an empty one if the file holds anything else."""
    try:
        data = read_json(path)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def lock_path(model_root: Path, dataset: str, configuration: str, fold: int | str) -> Path:
    """Return the file on which each writer of a fold holds a kernel lock."""
    return model_root / ".locks" / f"{dataset}-{configuration}-fold_{fold}.lock"
