"""The record that makes a trained fold complete, and the check that it still is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.steps.params import TrainParams
from nnunet_jobs.contract.storage.files import read_json, sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import FINAL_CHECKPOINT
from nnunet_jobs.training.fold import configuration_entry, fold_cases, fold_folder, inputs_hash, next_stage_names, read_json_or_empty

FOLD_RECORD = "fold.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldState:
    """Says whether a fold is complete, and holds its validation Dice.

    Attributes:
        complete: Whether final checkpoint, predictions, summary, preprocessed inputs and split have not changed since the
            fold was verified.
        reasons: What is missing or differs; empty when complete.
        dice: Mean foreground validation Dice; None for fold ``all``, whose cases were trained on.
        dice_per_label: Dice by label name.
        epochs: Number of trained epochs.
    """

    complete: bool
    reasons: tuple[str, ...] = ()
    dice: float | None = None
    dice_per_label: dict[str, float | None] | None = None
    dice_on_training_cases: float | None = None
    epochs: int | None = None


def summary_dice(summary: Mapping[str, Any], labels: Mapping[str, Any]) -> tuple[float | None, dict[str, float | None]]:
    """Return (mean foreground Dice, Dice by label name) of a summary.json; NaN (no reference has the label) becomes None."""
    return _number(summary["foreground_mean"]["Dice"]), label_dice(summary["mean"], labels)


def label_dice(metrics: Mapping[Any, Mapping[str, Any]], labels: Mapping[str, Any]) -> dict[str, float | None]:
    """Return Dice by label name of one part of a summary.json, such as of one case; NaN becomes None.

    nnU-Net writes a list of one value as that value if no label is a region of several, and as a region of one otherwise.
    """
    by_values = {_values(key): values["Dice"] for key, values in metrics.items()}
    wanted = {name: _values(value) for name, value in labels.items() if name != "background"}
    return {name: _number(by_values[values]) for name, values in wanted.items() if values in by_values}


def stamp(path: Path) -> dict[str, Any]:
    """Record the state of a verified file."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256_file(path)}


def unchanged(path: Path, stamped: Mapping[str, Any], *, always_hash: bool = False) -> bool:
    """Whether a file has not changed since it was stamped; its bytes are read if size and time do not show it."""
    if not path.is_file() or path.stat().st_size != stamped["size"]:
        return False
    if not always_hash and path.stat().st_mtime_ns == stamped["mtime_ns"]:
        return True
    return bool(sha256_file(path) == stamped["sha256"])


def write_fold_record(folder: Path, record: Mapping[str, Any], *, files: Sequence[str]) -> None:
    """Write the record that makes a fold complete, last and by rename. ``files``: names relative to its folder."""
    stamps = {name: stamp(folder / name) for name in (FINAL_CHECKPOINT, "validation/summary.json", *files)}
    write_json(folder / FOLD_RECORD, {"schema": 1, **record, "files": stamps})


def record_fold(folder: Path, dataset_folder: Path, params: TrainParams) -> None:
    """Read all outputs back and record them with their inputs, which makes the fold complete.

    Args:
        folder: Folder of the fold, trained and validated.
        dataset_folder: Folder of the preprocessed dataset.
        params: Parameters of its training.
    """
    from nnunet_jobs.training import checkpoint

    entry = configuration_entry(dataset_folder, params.plans, params.configuration)
    _, validation = fold_cases(dataset_folder, entry["data_identifier"], params.fold)
    final = checkpoint.load(folder / FINAL_CHECKPOINT, mapped=True)
    description = read_json(dataset_folder / "dataset.json")
    dice, per_label = summary_dice(read_json(folder / "validation" / "summary.json"), description["labels"])
    on_training = params.fold == "all"
    endings = (description["file_ending"], *((".npz", ".pkl") if params.npz else ()))
    write_fold_record(
        folder,
        {
            "inputs": inputs_hash(dataset_folder, plans=params.plans, configuration=params.configuration, fold=params.fold),
            "epochs": int(final["current_epoch"]),
            "dice": None if on_training else dice,
            "dice_on_training_cases": dice if on_training else None,
            "dice_per_label": None if on_training else per_label,
        },
        files=[
            *(f"validation/{case}{ending}" for case in validation for ending in endings),
            *next_stage_names(dataset_folder, params.plans, params.configuration, validation),
        ],
    )


def inspect_fold(
    model_root: Path,
    version_root: Path,
    dataset: str,
    *,
    trainer: str,
    plans: str,
    configuration: str,
    fold: int | str,
    npz: bool = False,
) -> FoldState:
    """Check by content whether a fold is complete; existing files alone are not enough.

    Args:
        model_root: ``nnUNet_results/.versions/<model>``.
        version_root: ``nnUNet_preprocessed/.versions/<v>``.
        npz: Whether probabilities of all validation cases are required too.
    """
    folder = fold_folder(model_root, dataset, trainer=trainer, plans=plans, configuration=configuration, fold=fold)
    if not folder.is_dir():
        return FoldState(complete=False, reasons=("not trained",))
    record = read_json_or_empty(folder / FOLD_RECORD) if (folder / FOLD_RECORD).is_file() else {}
    if not record:
        what = "training has not ended" if not (folder / FINAL_CHECKPOINT).is_file() else "validation has not ended"
        return FoldState(complete=False, reasons=(f"{what} ({FOLD_RECORD} is missing)",))
    dataset_folder = version_root / dataset
    entry = configuration_entry(dataset_folder, plans, configuration)
    _, val = fold_cases(dataset_folder, entry["data_identifier"], fold)
    reasons = []
    if record["inputs"] != inputs_hash(dataset_folder, plans=plans, configuration=configuration, fold=fold):
        reasons.append("it was trained on other inputs (plans, dataset.json, split or cases differ)")
    for name, stamped in record["files"].items():
        if not name.startswith("../") and not unchanged(folder / name, stamped, always_hash=name == FINAL_CHECKPOINT):
            reasons.append(f"{name} is missing or has changed since it was verified")
    inputs = next_stage_names(dataset_folder, plans, configuration, val)
    lost = [name for name in inputs if not _left_for_next_stage(folder, name, record["files"], fold)]
    if lost:
        reasons.append(f"inputs of the next stage are missing or have changed: {len(lost)} of {len(inputs)} files, such as {lost[0]}")
    if npz:
        lacking = [case for case in val if f"validation/{case}.npz" not in record["files"]]
        if lacking:
            reasons.append(f"validation probabilities are missing for {len(lacking)} of {len(val)} cases")
    summary = read_json_or_empty(folder / "validation" / "summary.json") if not reasons else {}
    if summary:
        ending = read_json(dataset_folder / "dataset.json")["file_ending"]
        summarised = sorted(Path(case["prediction_file"]).name.removesuffix(ending) for case in summary["metric_per_case"])
        if summarised != val:
            reasons.append(f"summary.json has {len(summarised)} cases, the split {len(val)}, and they differ")
    return FoldState(
        complete=not reasons,
        reasons=tuple(reasons),
        dice=record["dice"],
        dice_per_label=record["dice_per_label"],
        dice_on_training_cases=record.get("dice_on_training_cases"),
        epochs=record["epochs"],
    )


def _values(label: Any) -> frozenset[int]:
    """Return the values of a label or region, or of its string in summary.json: ``1``, ``[1]``, ``"1"``, ``"(1, 2)"``."""
    if isinstance(label, str):
        return frozenset(map(int, re.findall(r"\d+", label)))
    return frozenset(map(int, label)) if isinstance(label, list | tuple) else frozenset([int(label)])


def _left_for_next_stage(folder: Path, name: str, files: Mapping[str, Any], fold: int | str) -> bool:
    """Whether a prediction for the next stage is intact. For fold ``all``, the fold that validates the case may have replaced it."""
    if name not in files:
        return False
    return unchanged(folder / name, files[name]) or (fold == "all" and (folder / name).is_file())


def _number(value: Any) -> float | None:
    number = float(value)
    return number if number == number else None
