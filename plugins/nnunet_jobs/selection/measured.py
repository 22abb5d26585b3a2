"""Surface distances and volumes of the chosen model in cross-validation: ``metrics.json`` beside ``summary.json``, means in the card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import FindBestParams
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.metrics.cases import FILE, named_labels, tolerances, write_metrics
from nnunet_jobs.metrics.surfaces import DEFAULT_TOLERANCE_MM, IMPLEMENTATION
from nnunet_jobs.selection.compare import Reference
from nnunet_jobs.selection.trained import Trained

log = logging.getLogger("nnunet_jobs")


def label_tolerances(reference: Reference, tolerance_mm: float | Mapping[str, float]) -> dict[str, float]:
    """The tolerance of every label that is compared, in mm.

    Raises:
        ConfigError: A tolerance is given for a label that the dataset does not have.
    """
    names = list(named_labels(reference.labels, reference.dataset_json["labels"]))
    unknown = sorted(set(tolerance_mm) - set(names)) if isinstance(tolerance_mm, Mapping) else []
    if unknown:
        problem = f"names no label of {reference.dataset_json.get('name', 'the dataset')}"
        raise ConfigError(field="tolerance_mm", value=", ".join(unknown), problem=problem, fix=f"its labels are {', '.join(names)}")
    return tolerances(tolerance_mm, names, DEFAULT_TOLERANCE_MM)


def cross_validated(folder: Path, reference: Reference, tolerance_mm: Mapping[str, float], context: StepContext) -> dict[str, Any]:
    """Compare the postprocessed predictions of every validation case with the references, and write ``metrics.json``.

    Args:
        folder: The predictions, with their ``summary.json``.
        reference: The reference segmentations.
        tolerance_mm: Tolerance of the NSD in mm by label name.
        context: May tell this to stop between cases.

    Returns:
        The card's ``metrics.surfaces``: ``implementation``, ``tolerance_mm``, and the means ``per_label`` and ``foreground`` in ``cv``.
    """
    cases = [Path(entry["prediction_file"]).name for entry in read_json(folder / "summary.json")["metric_per_case"]]
    done = 0

    def on_case() -> None:
        nonlocal done
        done += 1
        context.progress("surfaces", done, len(cases))
        context.beat()
        context.check_stop()

    report = write_metrics(
        {name.removesuffix(reference.ending): (reference.path(name.removesuffix(reference.ending)), folder / name) for name in cases},
        folder / FILE,
        reader_writer=reference.reader_writer,
        labels=named_labels(reference.labels, reference.dataset_json["labels"]),
        tolerance_mm=tolerance_mm,
        ignore_label=reference.label_manager.ignore_label,
        threads=context.cpus,
        on_case=on_case,
    )
    means = {name: report[name] for name in ("per_label", "foreground")}
    return {"implementation": report["implementation"], "tolerance_mm": report["tolerance_mm"], "cv": means}


def measured_again(card: Mapping[str, Any], trained: Trained, params: FindBestParams, context: StepContext) -> dict[str, Any] | None:
    """Measure a finished selection again where its card has other tolerances, or none, or was measured by another implementation.

    Returns:
        The card with the new numbers, not written; None where nothing has changed, or there is no cross-validation.
    """
    if not trained.cross_validated:
        return None
    reference = Reference(trained, context)
    wanted, known = label_tolerances(reference, params.tolerance_mm), card["metrics"].get("surfaces", {})
    if (known.get("tolerance_mm"), known.get("implementation")) == (wanted, IMPLEMENTATION):
        return None
    best = read_json(trained.root / "inference_information.json")["best_model_or_ensemble"]
    folder = (trained.root / best["postprocessing_file"]).parent / "postprocessed"
    if not (folder / "summary.json").is_file():
        log.warning("%s keeps its surface metrics: the predictions of its cross-validation are not there any more", trained.model)
        return None
    surfaces = {**known, **cross_validated(folder, reference, wanted, context)}
    return {**card, "metrics": {**card["metrics"], "surfaces": surfaces}}
