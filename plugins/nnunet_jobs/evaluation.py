"""Dice and the other numbers of ``summary.json``, as nnU-Net computes them, in threads in place of a spawned pool."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


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
        references, predictions: files in the same order. labels: labels, or regions as tuples, without background.
        reader_writer: makes a reader; each thread gets its own. on_case: called after each case; may raise to stop.

    Returns:
        What ``compute_metrics_on_folder`` returns: ``metric_per_case``, ``mean``, ``foreground_mean``; keys as in memory.
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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)  # a label that no case has: NaN, as in nnU-Net
        mean = {label: {name: np.nanmean([case["metrics"][label][name] for case in cases]) for name in names} for label in labels}
    foreground = {name: np.mean([mean[label][name] for label in labels if label != 0]) for name in names}
    for part in (*cases, mean, foreground):
        recursive_fix_for_json_export(part)
    summary = {"metric_per_case": cases, "mean": mean, "foreground_mean": foreground}
    save_summary_json(summary, str(output))
    return summary


def finite(value: float) -> float | None:
    """A number, or None for NaN: JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
