"""Implements nnU-Net's sliding window without the imports that only training needs.

It does the same arithmetic in the same order as ``nnUNetPredictor``, so the results are the same bytes. That class is in a module
that imports torch's compiler (4 s) and, through the trainers, all of training; here, every tile also reports a heartbeat and checks
for a stop request. On a CPU several windows can be computed at the same time; they are added up in their order.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

log = logging.getLogger("nnunet_jobs")

_Windows = Sequence[tuple[Any, ...]]


def window_slices(shape: Sequence[int], patch: Sequence[int], step_size: float) -> list[tuple[Any, ...]]:
    """Return the windows as index tuples into a (channel, x, y, z) array. A 2D patch visits every slice of the first axis."""
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    whole: tuple[Any, ...] = (slice(None),)
    if len(patch) < len(shape):
        steps = compute_steps_for_sliding_window(tuple(shape[1:]), tuple(patch), step_size)
        planes: Sequence[tuple[Any, ...]] = [(plane,) for plane in range(shape[0])]
    else:
        steps = compute_steps_for_sliding_window(tuple(shape), tuple(patch), step_size)
        planes = [()]
    return [
        whole + plane + tuple(slice(start, start + size) for start, size in zip(starts, patch, strict=True))
        for plane in planes
        for starts in itertools.product(*steps)
    ]


def predict_logits(
    network: Any,
    data: Any,
    *,
    heads: int,
    patch: Sequence[int],
    step_size: float,
    mirror_axes: Sequence[int] | None,
    device: Any,
    on_tile: Callable[[], None],
    tiles: int = 1,
    half: bool = False,
    lanes: int = 1,
) -> Any:
    """Compute the logits of one preprocessed image, averaged over overlapping windows with Gaussian weights.

    Args:
        network: Network on ``device``, in evaluation mode.
        data: Float32 tensor (channel, x, y, z) on the CPU.
        heads: Outputs of the network.
        step_size: Step size as a share of the patch.
        mirror_axes: Spatial axes to mirror, None for none.
        on_tile: Called before every window; may raise to stop.
        tiles: Windows given to the network at once; more than one may change the last bits.
        half: Whether the network's weights are in half precision; the image must be too.
        lanes: Threads that run windows at the same time, on one core each; with 1, the calling thread runs them on all
            of torch's cores.

    Returns:
        Half-precision tensor (head, x, y, z) on the CPU, of ``data``'s spatial shape.

    Raises:
        RuntimeError: The network returned infinite values.
    """
    import torch
    from acvl_utils.cropping_and_padding.padding import pad_nd_image

    cuda = device.type == "cuda"
    autocast = torch.autocast(device.type, enabled=True) if cuda else contextlib.nullcontext()
    with torch.inference_mode(), autocast:
        padded, revert = pad_nd_image(data, patch, "constant", {"value": 0}, True, None)
        slices = window_slices(padded.shape[1:], patch, step_size)
        arguments = {
            "heads": heads, "patch": patch, "mirror_axes": mirror_axes, "device": device, "on_tile": on_tile, "tiles": tiles, "half": half,
            "lanes": lanes,
        }  # fmt: skip
        try:
            logits = _accumulate(network, padded, slices, results_on=device if cuda else torch.device("cpu"), **arguments)
        except torch.cuda.OutOfMemoryError:
            logits = None
        if logits is None:  # not in the handler, whose traceback would keep the arrays that did not fit in memory
            log.warning("the GPU cannot hold the logits of this image; collecting them in main memory")
            torch.cuda.empty_cache()
            logits = _accumulate(network, padded, slices, results_on=torch.device("cpu"), **arguments)
        return logits[(slice(None), *revert[1:])].to("cpu")


def _accumulate(
    network: Any,
    padded: Any,
    slices: Sequence[tuple[Any, ...]],
    *,
    results_on: Any,
    heads: int,
    patch: Sequence[int],
    mirror_axes: Sequence[int] | None,
    device: Any,
    on_tile: Callable[[], None],
    tiles: int,
    half: bool,
    lanes: int,
) -> Any:
    import torch
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    padded = padded.to(results_on)
    logits = torch.zeros((heads, *padded.shape[1:]), dtype=torch.half, device=results_on)
    weights = torch.zeros(padded.shape[1:], dtype=torch.half, device=results_on)
    gaussian = compute_gaussian(tuple(patch), sigma_scale=1.0 / 8, value_scaling_factor=10, device=results_on)

    def infer(windows: Sequence[tuple[Any, ...]]) -> Any:
        with torch.inference_mode():  # applies to one thread
            if len(windows) == 1:
                batch = torch.clone(padded[windows[0]][None], memory_format=torch.contiguous_format).to(device)
            else:
                batch = torch.stack([padded[window] for window in windows]).to(device)
            return _mirrored(network, batch.half() if half else batch, mirror_axes).to(results_on)

    groups = [slices[first : first + tiles] for first in range(0, len(slices), tiles)]
    for windows, predictions in _in_lanes(infer, groups, min(lanes, len(groups)), on_tile):
        for window, prediction in zip(windows, predictions, strict=True):
            prediction *= gaussian
            logits[window] += prediction
            weights[window[1:]] += gaussian
    torch.div(logits, weights, out=logits)
    if torch.any(torch.isinf(logits)):
        raise RuntimeError("the network gave infinite values for this image")
    return logits


def _in_lanes(
    infer: Callable[[_Windows], Any], groups: Sequence[_Windows], lanes: int, on_tile: Callable[[], None]
) -> Iterator[tuple[_Windows, Any]]:
    """Yield each group with the result of ``infer``, in order; a few are computed ahead."""
    import torch

    if lanes == 1:
        for windows in groups:
            on_tile()
            yield windows, infer(windows)
        return
    ahead: deque[tuple[_Windows, Future[Any]]] = deque()
    with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for windows in groups:
                on_tile()
                ahead.append((windows, pool.submit(infer, windows)))
                if len(ahead) > 2 * lanes:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _mirrored(network: Any, tile: Any, mirror_axes: Sequence[int] | None) -> Any:
    import torch

    prediction = network(tile)
    if mirror_axes is not None:
        spatial = [axis + 2 for axis in mirror_axes]
        combinations = [axes for n in range(len(spatial)) for axes in itertools.combinations(spatial, n + 1)]
        for axes in combinations:
            prediction += torch.flip(network(torch.flip(tile, axes)), axes)
        prediction /= len(combinations) + 1
    return prediction
