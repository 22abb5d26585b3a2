"""Checks the low-resolution predictions that the folds of a cascade leave for its next stage.

They are beside the folds, in ``<configuration>/predicted_next_stage/<next stage>/<case>.b2nd``, and belong to the fold that validates
the case. Fold ``all`` was trained on every case, so its predictions only fill in for folds that have not been trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import TrainParams
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.training.fold import NEXT_STAGE, configuration_folder, fold_cases, next_stage_name, read_json_or_empty
from nnunet_jobs.training.fold_record import FOLD_RECORD, unchanged


def verified_elsewhere(configuration: Path, name: str) -> bool:
    """Whether a numbered fold of this configuration has verified this prediction for the next stage, and it has not changed since.

    Args:
        configuration: nnU-Net's folder of one trained configuration.
        name: Name of the file, relative to a fold's folder.
    """
    path = configuration / name.removeprefix("../")
    return any(name in files and unchanged(path, files[name], always_hash=True) for files in _records(configuration, "fold_[0-9]*"))


def _records(configuration: Path, folds: str) -> Iterator[Mapping[str, Any]]:
    for path in sorted(configuration.glob(f"{folds}/{FOLD_RECORD}")):
        yield read_json_or_empty(path).get("files", {})


def require_previous_stage(
    entry: Mapping[str, Any], params: TrainParams, dataset_folder: Path, model: Path, validation: Sequence[str]
) -> None:
    """Require the low-resolution predictions of all cases, which all folds of the previous stage make.

    Args:
        entry: The plans' entry of the configuration.
        dataset_folder: Folder of the preprocessed dataset.
        model: The dataset's folder of the model.
        validation: Cases of the fold to be trained.

    Raises:
        ConfigError: Some are missing, or differ from what a fold has verified; names the folds, which are incomplete
            until this is fixed.
    """
    previous = entry.get("previous_stage")
    if not previous:
        return
    stage = configuration_folder(model.parent, model.name, trainer=params.trainer, plans=params.plans, configuration=previous)
    whole = set()
    for files in _records(stage, "fold_*"):
        for name, stamped in files.items():
            if name.startswith(f"../{NEXT_STAGE}/{params.configuration}/") and unchanged(stage / name.removeprefix("../"), stamped):
                whole.add(name)
    train, _ = fold_cases(dataset_folder, entry["data_identifier"], params.fold)
    missing = {case for case in {*train, *validation} if next_stage_name(params.configuration, case) not in whole}
    if not missing:
        return
    splits = read_json(dataset_folder / "splits_final.json")
    folds = [str(number) for number, split in enumerate(splits) if missing & set(split["val"])]
    shown = sorted(missing)
    raise ConfigError(
        field="configuration",
        value=params.configuration,
        problem=(f"the predictions of {previous} are missing or have changed for {len(missing)} of its cases, such as {shown[0]}"),
        fix=f"train fold {', '.join(folds) or 'all'} of {previous} with the same settings first",
    )
