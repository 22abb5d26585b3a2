"""Turns logits into labels on the image's grid, one class after the other, so that large volumes with many classes fit into memory.

nnU-Net converts the logits of all classes to float64 before it resamples them. Classes do not depend on one another there, so each
is resampled alone, by nnU-Net's own function, and only the best value so far and its label are kept. The labels are the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.prediction.network import StageNetwork

_SEPARATE = ("resample_data_or_seg_to_shape", "resample_torch_fornnunet")
"""nnU-Net's resampling functions that treat each class separately."""

_BYTES_AT_ONCE = 1 << 30
"""Bytes of float64 volumes that may be in work at the same time; a single larger one is worked on alone."""

Resample = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def can_separate(network: StageNetwork) -> bool:
    """Whether the plans' resampling and labelling treat each class separately; a site's own functions may not."""
    own = network.plans_manager.plans.get("label_manager", "LabelManager") != "LabelManager"
    return not own and network.configuration_manager.configuration.get("resampling_fn_probabilities") in _SEPARATE


def label_by_class(
    network: StageNetwork, logits: npt.NDArray[Any], properties: dict[str, Any], *, threads: int, linear: bool = False
) -> npt.NDArray[Any]:
    """Make the segmentation on the image's grid.

    Args:
        logits: Half-precision logits of the network, (head, x, y, z).
        properties: nnU-Net's properties of the case.
        threads: Classes that may be resampled at the same time, if memory allows.
        linear: Resample with torch, in single precision: faster, and a few voxels on the borders of labels differ.

    Returns:
        Labels, (z, y, x) in the reader's axis order; without ``linear`` the same bytes as nnU-Net's own conversion.
    """
    from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image

    manager = network.label_manager
    resample = resampler(network, properties, linear=threads if linear else 0)
    shape = tuple(int(size) for size in properties["shape_after_cropping_and_before_resampling"])
    classes = _each(logits, resample, threads=1 if linear else _beside(logits, shape, threads))
    cropped = _regions(network, classes, shape) if manager.has_regions else _largest(classes, shape, len(logits))
    whole = np.zeros(properties["shape_before_cropping"], dtype=np.uint8 if len(manager.foreground_labels) < 255 else np.uint16)
    whole = insert_crop_into_image(whole, cropped, properties["bbox_used_for_cropping"])
    return np.asarray(whole.transpose(network.plans_manager.transpose_backward))


def resampler(network: StageNetwork, properties: dict[str, Any], *, linear: int = 0) -> Resample:
    """Return nnU-Net's resampling of logits from the configuration's spacing to the case's own, as its export calls it.

    Args:
        linear: Threads for nnU-Net's torch resampling instead; 0 keeps the function that the plans name.
    """
    shape = properties["shape_after_cropping_and_before_resampling"]
    spacing = [properties["spacing"][axis] for axis in network.plans_manager.transpose_forward]
    configured = network.configuration_manager.spacing
    current = configured if len(configured) == len(shape) else [spacing[0], *configured]

    if linear:
        from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

        return lambda logits: np.asarray(resample_torch_fornnunet(logits, shape, current, spacing, num_threads=linear))

    def resample(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(network.configuration_manager.resampling_fn_probabilities(logits, shape, current, spacing))

    return resample


def _beside(logits: npt.NDArray[Any], shape: tuple[int, ...], threads: int) -> int:
    """Return how many classes may be in memory as float64 at the same time, before and after resampling."""
    one = 8 * (int(np.prod(logits.shape[1:])) + int(np.prod(shape)))
    return max(1, min(threads, len(logits), _BYTES_AT_ONCE // one))


def _each(logits: npt.NDArray[Any], resample: Resample, *, threads: int) -> Iterator[npt.NDArray[Any]]:
    """Yield resampled classes in order, at most ``threads`` ahead of the caller."""
    if threads == 1:
        for index in range(len(logits)):
            yield resample(logits[index : index + 1])[0]
        return
    with ThreadPoolExecutor(max_workers=threads) as pool:
        ahead: deque[Future[npt.NDArray[Any]]] = deque()
        for index in range(len(logits)):
            ahead.append(pool.submit(resample, logits[index : index + 1]))
            if len(ahead) >= threads:
                yield ahead.popleft().result()[0]
        while ahead:
            yield ahead.popleft().result()[0]


def _largest(classes: Iterator[npt.NDArray[Any]], shape: tuple[int, ...], heads: int) -> npt.NDArray[Any]:
    """Return the index of the largest class at each voxel, the first of equals and the first NaN, as NumPy's argmax does."""
    labels = np.zeros(shape, dtype=np.uint8 if heads <= 256 else np.uint16)
    best: npt.NDArray[Any] | None = None
    for index, values in enumerate(classes):
        # half-precision comparisons are slow, in software; float32 holds every half exactly
        here = values.astype(np.float32)
        if best is None:
            best = here
            continue
        better = here > best
        better |= np.isnan(here) & ~np.isnan(best)
        better &= ~np.isnan(best)
        np.copyto(best, here, where=better)
        labels[better] = index
    return labels


def _regions(network: StageNetwork, classes: Iterator[npt.NDArray[Any]], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Paint regions over one another in their order, where their probability exceeds one half."""
    manager = network.label_manager
    labels = np.zeros(shape, dtype=np.uint16)
    for values, label in zip(classes, manager.regions_class_order, strict=True):
        labels[manager.apply_inference_nonlin(values[None])[0].numpy() > 0.5] = label
    return labels
