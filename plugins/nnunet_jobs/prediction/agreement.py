"""Measures how far a model's folds agree on a case, from their label maps at the network's resolution; logits are not kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.prediction.export import label_values
from nnunet_jobs.prediction.network import StageNetwork

_AT_ONCE = 1 << 22  # voxels


class FoldAgreement:
    """Takes each fold's logits in turn, and compares every pair at the end."""

    def __init__(self, network: StageNetwork) -> None:
        manager = network.label_manager
        self._regions = bool(manager.has_regions)
        values = list(manager.foreground_regions if self._regions else manager.foreground_labels)
        names = {found: name for name, found in label_values(network.dataset_json).items()}
        self._names = [
            names.get(tuple(map(int, value)) if isinstance(value, list | tuple) else (int(value),), str(value)) for value in values
        ]
        self._maps: list[npt.NDArray[Any]] = []

    def add(self, logits: Any) -> None:
        """Add one fold's logits, a tensor (head, x, y, z) on the CPU."""
        if self._regions:
            self._maps.append((logits > 0).numpy())  # a probability above one half
            return
        labels = np.empty(tuple(logits.shape[1:]), dtype=np.uint8 if len(logits) <= 256 else np.uint16)
        for slab in _slabs(labels.shape):
            labels[slab] = logits[:, slab].max(0)[1].numpy()  # four times as fast as argmax in half precision
        self._maps.append(labels)

    def dice(self) -> dict[str, float]:
        """Return the mean Dice over the pairs of folds by label name, for labels that any fold found."""
        pairs = [self._pair(first, second) for first, second in itertools.combinations(self._maps, 2)]
        found = {}
        for place, name in enumerate(self._names):
            known = [2 * pair[0][place] / pair[1][place] for pair in pairs if pair[1][place]]
            if known:
                found[name] = float(np.mean(known))
        return found

    def _pair(self, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> tuple[list[int], list[int]]:
        """Return by label the number of voxels that both have, and the sum of both numbers of voxels."""
        count = len(self._names)
        if self._regions:
            both = [int(np.count_nonzero(first[place] & second[place])) for place in range(count)]
            return both, [int(np.count_nonzero(first[place])) + int(np.count_nonzero(second[place])) for place in range(count)]
        together = np.zeros((count + 1, count + 1), dtype=np.int64)
        for slab in _slabs(first.shape):
            joint = first[slab].ravel().astype(np.intp) * (count + 1) + second[slab].ravel()
            together += np.bincount(joint, minlength=together.size).reshape(together.shape)
        sums = together.sum(axis=0) + together.sum(axis=1)
        return together.diagonal()[1:].tolist(), sums[1:].tolist()


def _slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield pieces along the first axis, so that integer copies of a large volume are never in memory."""
    thick = max(1, _AT_ONCE // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], thick):
        yield slice(start, start + thick)
