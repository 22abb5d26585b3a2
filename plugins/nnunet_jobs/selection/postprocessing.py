"""Tests whether keeping only the largest component improves predictions, for all foreground at once, then label by label.

The rules are those of nnU-Net's ``determine_postprocessing``: all foreground only where the mean improves and no label gets
worse; a label (or region) where its own Dice improves. One rule is added: no step is kept that lowers the mean Dice. Removing islands
of an inner region cuts holes into the outer ones, and nnU-Net, which looks at the region's own Dice alone, keeps that. What it would
have kept is named in the card. The same files are written, so nnU-Net's tools can apply the result.
"""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.storage.files import write_atomic
from nnunet_jobs.prediction.export import copy_segmentation, fresh_folder
from nnunet_jobs.selection.compare import Candidate, Reference

log = logging.getLogger("nnunet_jobs")
FILES = ("postprocessing.json", "postprocessing.pkl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Postprocessing:
    """The steps that improved the validation predictions.

    Attributes:
        steps: ``{"function", "labels_or_regions"}`` in order, regions as tuples.
        folder: The postprocessed predictions.
        declined: Steps that improve their own label or region but lower the mean: ``labels_or_regions``, and ``dice``
            (its own) and ``mean_dice`` as ``[before, after]``.
    """

    steps: tuple[dict[str, Any], ...]
    declined: tuple[dict[str, Any], ...] = ()
    folder: Path


def determine(candidate: Candidate, reference: Reference, context: StepContext) -> Postprocessing:
    """Try every step on the candidate's predictions and keep those that improve Dice.

    Writes ``postprocessing.json`` and ``postprocessing.pkl`` beside the predictions and the result to ``postprocessed/``.
    """
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation as largest

    output = candidate.folder / "postprocessed"
    scratch = output / "temp"
    fresh_folder(output)
    source, summary = candidate.folder, candidate.summary
    steps: list[dict[str, Any]] = []
    declined: list[dict[str, Any]] = []
    trials: list[Any] = [reference.foreground]
    if len(reference.labels) > 1:
        trials += reference.labels
    for number, labels in enumerate(trials):
        context.progress("postprocessing", number, len(trials))
        trial = scratch / str(number)
        _apply(source, trial, candidate.cases, largest, labels, reference, context)
        result = reference.summarise(candidate.cases, trial)
        helps, lowers = _improves(result, summary, label=None if number == 0 else labels), _lowers_mean(result, summary)
        if helps and lowers:
            declined.append(_declined(labels, summary, result))
        if helps and not lowers:
            steps.append({"function": largest.__name__, "labels_or_regions": labels})
            source, summary = trial, result
        else:
            shutil.rmtree(trial)
    for case in candidate.cases:
        copy_segmentation(source / f"{case}{reference.ending}", output)
    _write_summary(summary, output)
    shutil.rmtree(scratch)
    _write(candidate, summary, steps, largest)
    return Postprocessing(steps=tuple(steps), folder=output, declined=tuple(declined))


def _apply(
    source: Path, target: Path, cases: Sequence[str], function: Any, labels: Any, reference: Reference, context: StepContext
) -> None:
    from nnunetv2.postprocessing.remove_connected_components import load_postprocess_save

    target.mkdir(parents=True)

    def one(case: str) -> None:
        context.check_stop()
        name = f"{case}{reference.ending}"
        load_postprocess_save(
            str(source / name), str(target / name), reference.reader_writer(), [function], [{"labels_or_regions": labels}]
        )
        context.beat()

    with ThreadPoolExecutor(max_workers=max(1, context.cpus)) as pool:
        list(pool.map(one, cases))


def _improves(result: dict[str, Any], before: dict[str, Any], *, label: Any) -> bool:
    if label is not None:
        return bool(result["mean"][label]["Dice"] > before["mean"][label]["Dice"])
    better = result["foreground_mean"]["Dice"] > before["foreground_mean"]["Dice"]
    return bool(better and not any(result["mean"][key]["Dice"] < before["mean"][key]["Dice"] for key in result["mean"]))


def _lowers_mean(result: dict[str, Any], before: dict[str, Any]) -> bool:
    return bool(result["foreground_mean"]["Dice"] < before["foreground_mean"]["Dice"])


def _declined(label: Any, before: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    own = [float(summary["mean"][label]["Dice"]) for summary in (before, result)]
    mean = [float(summary["foreground_mean"]["Dice"]) for summary in (before, result)]
    log.info(
        "keeping only the largest component of %s raises its Dice from %.4f to %.4f and lowers the mean from %.4f to %.4f: not kept "
        "(stock nnU-Net would)", label, *own, *mean,
    )  # fmt: skip
    return {"labels_or_regions": label, "dice": own, "mean_dice": mean}


def _write_summary(summary: dict[str, Any], folder: Path) -> None:
    from nnunetv2.evaluation.evaluate_predictions import save_summary_json

    cases = [{**case, "prediction_file": str(folder / Path(case["prediction_file"]).name)} for case in summary["metric_per_case"]]
    save_summary_json({**summary, "metric_per_case": cases}, str(folder / "summary.json"))


def _write(candidate: Candidate, summary: dict[str, Any], steps: Sequence[dict[str, Any]], function: Any) -> None:
    """Write postprocessing.json for people and postprocessing.pkl for nnUNetv2_apply_postprocessing."""
    from batchgenerators.utilities.file_and_folder_operations import save_json
    from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key

    def metrics(source: dict[str, Any]) -> dict[str, Any]:
        mean = {label_or_region_to_key(label): values for label, values in source["mean"].items()}
        return {"foreground_mean": source["foreground_mean"], "mean": mean}

    kwargs = [{"labels_or_regions": step["labels_or_regions"]} for step in steps]
    save_json(
        {
            "input_folder": metrics(candidate.summary),
            "postprocessed": metrics(summary),
            "postprocessing_fns": [step["function"] for step in steps],
            "postprocessing_kwargs": kwargs,
        },
        str(candidate.folder / FILES[0]),
    )
    write_atomic(candidate.folder / FILES[1], pickle.dumps(([function] * len(steps), kwargs)))
