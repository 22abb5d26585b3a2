"""From logits to labels class by class: nnU-Net's own labels bit for bit, in less memory; the fast way, nearly the same."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from devtools.testbed.stages import stage_of_labels
from nnunet_jobs.prediction.labelling import can_separate, label_by_class

GRIDS = {
    "isotropic": ((1.0, 1.0, 1.0), (22, 30, 26), (33, 45, 36)),
    "thick slices": ((5.0, 1.0, 1.0), (8, 40, 40), (11, 56, 56)),
    "no resampling": ((1.0, 1.0, 1.0), (22, 30, 26), (22, 30, 26)),
}
LABELS: dict[str, tuple[dict[str, Any], list[int] | None]] = {
    "labels": ({"background": 0, **{f"l{value}": value for value in range(1, 7)}}, None),
    "regions": ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rest": 3}, [1, 2, 3]),
    "many labels": ({"background": 0, **{f"l{value}": value for value in range(1, 261)}}, None),
}


def case(grid: str, heads: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """Logits on a coarse scale, so that classes are equal at many voxels, and the properties of their case."""
    spacing, source, target = GRIDS[grid]
    logits = np.round(np.random.default_rng(seed).normal(size=(heads, *source)) * 4).astype(np.float16) / 2
    properties = {
        "spacing": [value * old / new for value, old, new in zip(spacing, source, target, strict=True)],
        "shape_after_cropping_and_before_resampling": target,
        "shape_before_cropping": [size + 3 for size in target],
        "bbox_used_for_cropping": [[1, 1 + size] for size in target],
    }
    return logits.astype(np.float16), properties


def stock(network: Any, logits: Any, properties: dict[str, Any]) -> Any:
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.copy(), network.plans_manager, network.configuration_manager, network.label_manager, properties, num_threads_torch=2
    )


# resampling 260 classes takes a minute and shows nothing that six do not
COMBINED = [*((kind, grid) for kind in ("labels", "regions") for grid in GRIDS), ("many labels", "no resampling")]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("kind", "grid"), COMBINED)
def test_the_labels_are_those_of_stock_nnunet(kind: str, grid: str, threads: int) -> None:
    network = stage_of_labels(*LABELS[kind], GRIDS[grid][0])
    logits, properties = case(grid, network.label_manager.num_segmentation_heads)
    expected = stock(network, logits, properties)
    found = label_by_class(network, logits, properties, threads=threads)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 3


def test_what_is_not_a_number_goes_where_stock_nnunet_puts_it() -> None:
    network = stage_of_labels(*LABELS["labels"], GRIDS["no resampling"][0])
    logits, properties = case("no resampling", 7)
    logits[4, :10] = logits[2, 5:15] = np.nan
    assert np.array_equal(label_by_class(network, logits, properties, threads=1), stock(network, logits, properties))


def test_all_classes_are_never_in_memory_as_float64() -> None:
    network = stage_of_labels({"background": 0, **{f"l{value}": value for value in range(1, 20)}}, None, GRIDS["isotropic"][0])
    logits, properties = case("isotropic", 20)
    peaks = []
    for work in (lambda: stock(network, logits, properties), lambda: label_by_class(network, logits, properties, threads=1)):
        work()  # imports and caches
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] / 3


def test_fast_resampling_differs_in_few_voxels() -> None:
    network = stage_of_labels(*LABELS["labels"], GRIDS["isotropic"][0])
    smooth = np.add.outer(np.add.outer(np.arange(22), np.arange(30)), np.arange(26)) / 10
    logits = np.stack([-np.abs(smooth - centre) for centre in range(7)]).astype(np.float16)
    _, properties = case("isotropic", 7)
    exact = label_by_class(network, logits, properties, threads=2)
    fast = label_by_class(network, logits, properties, threads=2, linear=True)
    assert fast.shape == exact.shape
    assert np.mean(fast != exact) < 0.01


def test_a_sites_own_functions_see_all_classes_at_once() -> None:
    network = stage_of_labels(*LABELS["labels"], GRIDS["isotropic"][0])
    assert can_separate(network)
    network.plans_manager.plans["label_manager"] = "TheirLabelManager"
    assert not can_separate(network)
    network.plans_manager.plans.clear()
    network.configuration_manager.configuration["resampling_fn_probabilities"] = "their_resampling"
    assert not can_separate(network)
