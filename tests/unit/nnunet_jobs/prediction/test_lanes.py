"""Slices side by side: the same bits as one after the other, and an orderly end whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nnunet_jobs.prediction.sliding_window import predict_logits

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def network() -> Iterator[Any]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as each lane has
    torch.manual_seed(0)
    yield torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3, padding=1)).eval()
    torch.set_num_threads(before)


def logits(network: Callable[[Any], Any], *, lanes: int, tiles: int = 1, on_tile: Callable[[], None] = lambda: None) -> Any:
    import torch

    data = torch.randn((1, 7, 30, 25), generator=torch.Generator().manual_seed(1))
    return predict_logits(
        network, data, heads=3, patch=(16, 16), step_size=0.5, mirror_axes=(0, 1), device=torch.device("cpu"), on_tile=on_tile,
        tiles=tiles, lanes=lanes,
    )  # fmt: skip


@pytest.mark.parametrize("tiles", [1, 4])
def test_lanes_give_the_same_bits(network: Any, tiles: int) -> None:
    seen: set[int] = set()

    def noted(windows: Any) -> Any:
        seen.add(threading.get_ident())
        return network(windows)

    one = logits(network, lanes=1, tiles=tiles)
    several = logits(noted, lanes=3, tiles=tiles)
    assert one.numpy().tobytes() == several.numpy().tobytes()
    assert threading.get_ident() not in seen


def test_a_stop_between_windows_ends_all_lanes(network: Any) -> None:
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise InterruptedError("told to stop")

    before = threading.active_count()
    with pytest.raises(InterruptedError):
        logits(network, lanes=3, on_tile=stop)
    assert calls == 20
    assert threading.active_count() == before


def test_an_error_in_a_lane_is_the_callers(network: Any) -> None:
    def broken(windows: Any) -> Any:
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        logits(broken, lanes=2)
