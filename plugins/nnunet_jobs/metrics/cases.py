"""Files compared by all metrics of :mod:`nnunet_jobs.metrics.surfaces`, their means, and the ``metrics.json`` beside ``summary.json``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.metrics.surfaces import IMPLEMENTATION, Label, surface_metrics

FILE = "metrics.json"
_NO_AXIS = 999  # nnU-Net's readers give a picture a third axis with this many times its largest spacing

ByLabel = dict[str, dict[str, float | None]]


def named_labels(labels: Sequence[Label], names: Mapping[str, Any]) -> dict[str, Label]:
    """The labels or regions that are compared, by the names that ``dataset.json`` gives them."""
    by_values = {_values(value): name for name, value in names.items()}
    return {by_values[_values(label)]: label for label in labels}


def tolerances(tolerance_mm: float | Mapping[str, float], labels: Sequence[str], default: float) -> dict[str, float]:
    """The tolerance of each label in mm.

    Args:
        tolerance_mm: One number for all labels, or numbers by label name.
        labels: Names of the labels that are compared.
        default: Tolerance of labels that are not named.
    """
    if isinstance(tolerance_mm, Mapping):
        return {label: float(tolerance_mm.get(label, default)) for label in labels}
    return dict.fromkeys(labels, float(tolerance_mm))


def case_metrics(
    reference: Path,
    prediction: Path,
    *,
    reader_writer: Any,
    labels: Mapping[str, Label],
    tolerance_mm: Mapping[str, float],
    ignore_label: int | None = None,
) -> ByLabel:
    """Compare one predicted file with its reference.

    Args:
        reference: File of the reference segmentation; its spacing is the one that counts.
        prediction: File of the prediction.
        reader_writer: An nnU-Net reader; not shared between threads.
        labels: Labels, or regions as tuples, by name.
        tolerance_mm: Tolerance of the NSD in mm by name.
        ignore_label: nnU-Net's ignore label, where the dataset has one.

    Returns:
        By label name what :func:`~nnunet_jobs.metrics.surfaces.surface_metrics` returns.
    """
    (truth, properties), (found, _) = (reader_writer.read_seg(str(path)) for path in (reference, prediction))
    truth, found, spacing = truth[0], found[0], [float(step) for step in properties["spacing"]]
    if truth.shape[0] == 1 and math.isclose(spacing[0], _NO_AXIS * max(spacing[1:]), rel_tol=1e-5):
        truth, found, spacing = truth[0], found[0], spacing[1:]
    wanted = [tolerance_mm[name] for name in labels]
    by_label = surface_metrics(truth, found, spacing, [*labels.values()], tolerance_mm=wanted, ignore_label=ignore_label)
    return {name: by_label[label] for name, label in labels.items()}


def mean_metrics(cases: Sequence[ByLabel]) -> dict[str, Any]:
    """Means over cases.

    Returns:
        ``per_label``: by label name the mean of each value over the cases where it is a finite number, and how many cases have the label
        in the reference and the prediction (``both``), in the reference alone (``missed``) or in the prediction alone (``invented``).
        No distance is known of a missed or invented label, so a mean distance is to be read with these numbers. Dice and NSD of a label
        that no reference has are undefined.
        ``foreground``: mean of each over the labels that some reference has.
    """
    per_label: dict[str, dict[str, float | None]] = {}
    for label in cases[0] if cases else ():
        found = [case[label] for case in cases]
        counts = {name: sum(_presence(values) == name for values in found) for name in ("both", "missed", "invented")}
        exists = counts["both"] + counts["missed"] > 0
        means = {name: _mean([values[name] for values in found]) if exists or name not in ("dice", "nsd") else None for name in found[0]}
        per_label[label] = {**means, **counts}
    existing = [values for values in per_label.values() if values["both"] or values["missed"]]
    names = cases[0][next(iter(per_label))] if per_label else ()
    return {"per_label": per_label, "foreground": {name: _mean([values[name] for values in existing]) for name in names}}


def write_metrics(
    pairs: Mapping[str, tuple[Path, Path]],
    output: Path,
    *,
    reader_writer: Callable[[], Any],
    labels: Mapping[str, Label],
    tolerance_mm: Mapping[str, float],
    ignore_label: int | None,
    threads: int,
    on_case: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Compare segmentations with their references and write a ``metrics.json``.

    Args:
        pairs: (reference, prediction) by case.
        output: File to write.
        reader_writer: Makes a reader; each comparison gets its own.
        labels: Labels, or regions as tuples, by name.
        tolerance_mm: Tolerance of the NSD in mm by name.
        ignore_label: nnU-Net's ignore label, where the dataset has one.
        threads: Comparisons at once.
        on_case: Called after each case; may raise to stop.

    Returns:
        What is written: ``implementation``, ``tolerance_mm``, ``cases`` (by case and label), ``per_label`` and ``foreground``.
    """

    def compare(pair: tuple[Path, Path]) -> ByLabel:
        return case_metrics(*pair, reader_writer=reader_writer(), labels=labels, tolerance_mm=tolerance_mm, ignore_label=ignore_label)

    cases: dict[str, ByLabel] = {}
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        try:
            for case, metrics in zip(pairs, pool.map(compare, pairs.values()), strict=True):
                cases[case] = metrics
                on_case()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    report = metrics_report(cases, tolerance_mm)
    write_json(output, report)
    return report


def metrics_report(cases: Mapping[str, ByLabel], tolerance_mm: Mapping[str, float]) -> dict[str, Any]:
    """What ``metrics.json`` holds, from the metrics of cases; each case may have been compared at another time."""
    means = mean_metrics(list(cases.values()))
    return {"implementation": IMPLEMENTATION, "tolerance_mm": dict(tolerance_mm), "cases": dict(cases), **means}


def _presence(values: Mapping[str, float | None]) -> str:
    """Whether a case has a label in ``both`` segmentations, ``missed`` or ``invented`` it, or has it in ``neither``."""
    if values["dice"] is None:
        return "neither"
    if values["volume_difference_relative"] is None:
        return "invented"
    return "missed" if values["volume_difference_relative"] == -1 else "both"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _values(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, list | tuple) else (int(value),)
