"""Surface distances and volumes of the chosen model, cross-validated and held out: a ``metrics.json`` each, means in the card."""

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
from nnunet_jobs.selection.commands import postprocessed_folder
from nnunet_jobs.selection.compare import Reference
from nnunet_jobs.selection.holdout import FOLDER, Holdout
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


def measure(
    cross_validated: Path | None, held: Holdout, trained: Trained, reference: Reference, tolerance_mm: Mapping[str, float],
    context: StepContext,
) -> dict[str, Any]:  # fmt: skip
    """Compare predictions of the model with the references, and write ``metrics.json`` beside each kind of them.

    Args:
        cross_validated: Folder of the postprocessed predictions of the validation cases; None without a cross-validation.
        held: The hold-out cases, whose predictions are beside the model.
        trained: The model.
        reference: The reference segmentations of its version.
        tolerance_mm: Tolerance of the NSD in mm by label name.
        context: May tell this to stop between cases.

    Returns:
        The card's ``metrics.surfaces``: ``implementation``, ``tolerance_mm``, and in ``cv`` and ``holdout`` the means ``per_label`` and
        ``foreground``, or None where there are no such predictions.
    """
    validated: dict[str, tuple[Path, Path]] = {}
    if cross_validated is not None:
        names = [Path(entry["prediction_file"]).name for entry in read_json(cross_validated / "summary.json")["metric_per_case"]]
        cases = [name.removesuffix(reference.ending) for name in names]
        validated = {case: (reference.path(case), cross_validated / f"{case}{reference.ending}") for case in cases}
    predictions = {case: trained.root / FOLDER / f"{case}{held.ending}" for case in held.cases}
    kept = {case: (held.files(case)[1], path) for case, path in predictions.items() if path.is_file()}
    done, total = 0, len(validated) + len(kept)

    def on_case() -> None:
        nonlocal done
        done += 1
        context.progress("surfaces", done, total)
        context.beat()
        context.check_stop()

    def means(pairs: Mapping[str, tuple[Path, Path]], folder: Path | None) -> dict[str, Any] | None:
        if not pairs or folder is None:
            return None
        report = write_metrics(
            pairs,
            folder / FILE,
            reader_writer=reference.reader_writer,
            labels=named_labels(reference.labels, reference.dataset_json["labels"]),
            tolerance_mm=tolerance_mm,
            ignore_label=reference.label_manager.ignore_label,
            threads=context.cpus,
            on_case=on_case,
        )
        return {name: report[name] for name in ("per_label", "foreground")}

    return {
        "implementation": IMPLEMENTATION,
        "tolerance_mm": dict(tolerance_mm),
        "cv": means(validated, cross_validated),
        "holdout": means(kept, trained.root / FOLDER),
    }


def measured_again(
    card: Mapping[str, Any], trained: Trained, held: Holdout, params: FindBestParams, context: StepContext
) -> dict[str, Any] | None:  # fmt: skip
    """Measure a finished selection again where its card has other tolerances, or none, or was measured by another implementation.

    Returns:
        The card with the new numbers, not written; None where nothing has changed.
    """
    reference = Reference(trained, context)
    wanted, known = label_tolerances(reference, params.tolerance_mm), card["metrics"].get("surfaces", {})
    if (known.get("tolerance_mm"), known.get("implementation")) == (wanted, IMPLEMENTATION):
        return None
    folder = None
    if trained.cross_validated:
        folder = postprocessed_folder(trained.root)
        if not (folder / "summary.json").is_file():
            log.warning("%s keeps its surface metrics: the predictions of its cross-validation are not there any more", trained.model)
            return None
    surfaces = measure(folder, held, trained, reference, wanted, context)
    return {**card, "metrics": {**card["metrics"], "surfaces": surfaces}}
