"""Computes Dice and the other metrics of ``summary.json`` as nnU-Net does, in threads instead of a spawned pool.

One rule differs from nnU-Net's: a label that no reference segmentation has is undefined (NaN), and the foreground mean is over the
labels that exist. nnU-Net's mean is NaN if one label occurs nowhere, and such a label counts as 0 for a network that predicts a voxel
of it, so that the means of two networks cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

_OVERLAPS = ("Dice", "IoU")  # nnU-Net's metrics that are undefined without voxels in the reference


def summarise(
    references: Sequence[Path],
    predictions: Sequence[Path],
    output: Path,
    *,
    reader_writer: Callable[[], Any],
    labels: Sequence[int | tuple[int, ...]],
    ignore_label: int | None,
    threads: int,
    on_case: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Compare segmentations with their references and write nnU-Net's ``summary.json``.

    Args:
        references: Files with the reference segmentations.
        predictions: Files with the predictions, in the same order.
        labels: Labels, or regions as tuples, without background.
        reader_writer: Makes a reader; each thread gets its own.
        on_case: Called after each case; may raise to stop.

    Returns:
        The same as ``compute_metrics_on_folder``: ``metric_per_case``, ``mean``, ``foreground_mean``; keys as in memory. Dice and IoU
        of a label that no reference has are NaN and not part of ``foreground_mean``.
    """
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
    from nnunetv2.utilities.json_export import recursive_fix_for_json_export

    def compare(pair: tuple[Path, Path]) -> dict[str, Any]:
        metrics: dict[str, Any] = compute_metrics(str(pair[0]), str(pair[1]), reader_writer(), list(labels), ignore_label)
        return metrics

    cases = []
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        for case in pool.map(compare, zip(references, predictions, strict=True)):
            cases.append(case)
            on_case()
    names = list(cases[0]["metrics"][labels[0]])
    existing = [label for label in labels if any(case["metrics"][label]["n_ref"] for case in cases)]
    mean: dict[Any, dict[str, Any]] = {label: {} for label in labels}
    for label in labels:
        for name in names:
            undefined = name in _OVERLAPS and label not in existing
            mean[label][name] = math.nan if undefined else np.nanmean([case["metrics"][label][name] for case in cases])
    foreground = {}
    for name in names:
        counted = [mean[label][name] for label in (existing if name in _OVERLAPS else labels) if label != 0]
        foreground[name] = np.mean(counted) if counted else math.nan
    for part in (*cases, mean, foreground):
        recursive_fix_for_json_export(part)
    summary = {"metric_per_case": cases, "mean": mean, "foreground_mean": foreground}
    save_summary_json(summary, str(output))
    return summary


def finite(value: float) -> float | None:
    """Return a number, or None for NaN, which JSON does not have."""
    return float(value) if math.isfinite(value) else None
