"""Makes a dataset's fingerprint: reads each case once and caches it by content; the result equals nnU-Net's to the last digit.

nnU-Net draws ``10e7 // cases`` foreground intensities from each case, so the draw changes with the number of cases. The cache
therefore keeps the foreground itself, from which any draw can be repeated without reading the image again.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.contract.storage.files import temporary_beside

log = logging.getLogger(__name__)

# nnU-Net's numbers: DatasetFingerprintExtractor.num_foreground_voxels_for_intensitystats, the seed of
# collect_foreground_intensities, and its percentiles.
INTENSITIES_PER_DATASET = 10e7
SEED = 1234
PERCENTILES = (0.5, 50.0, 99.5)
# For a case with more foreground than this (times channels), the draw itself is cached, 4 bytes each.
REMEMBERED_INTENSITIES = 8_000_000
_PIECE = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFingerprint:
    """The fingerprint of one case, for planning.

    Attributes:
        shape: Shape after cropping to nonzero, in voxels, in the reader's axis order.
        spacing: Spacing in mm, same order.
        relative_size: Voxels after cropping by voxels before.
        foreground: Intensities of shape (channels, voxels), all of the foreground or the draw.
        draw: Number of intensities drawn, when ``foreground`` is a draw; None when it is complete.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    relative_size: float
    foreground: npt.NDArray[Any]
    draw: int | None = None

    def usable(self, draw: int) -> bool:
        """Whether a draw of this size can be made from what is cached."""
        return self.draw is None or self.draw == draw


def intensities_per_case(cases: int) -> int:
    """Return how many foreground intensities nnU-Net draws from each of ``cases`` cases."""
    return int(INTENSITIES_PER_DATASET // cases)


def analyse(images: npt.NDArray[Any], label: npt.NDArray[Any], spacing: Sequence[float], *, draw: int) -> CaseFingerprint:
    """Make the fingerprint of one case as DatasetFingerprintExtractor.analyze_case does.

    It needs only NumPy: nnU-Net also fills the holes of the nonzero mask first, which does not change the bounding box.

    Args:
        images: Images of shape (channels, x, y, z), as nnU-Net's reader returns them.
        label: Label of shape (1, x, y, z).
        spacing: Spacing in mm, in the reader's axis order.
        draw: Number of intensities to draw when there is too much foreground to cache.
    """
    box = _nonzero_box(images)
    foreground = np.ascontiguousarray(images[:, *box][:, label[0][box] > 0])
    shape = tuple(part.stop - part.start for part in box)
    too_much = foreground.size > REMEMBERED_INTENSITIES and foreground.shape[1] > draw
    return CaseFingerprint(
        shape=shape,
        spacing=tuple(float(size) for size in spacing),
        relative_size=float(np.prod(shape) / np.prod(images.shape[1:])),
        foreground=_draw(foreground, draw) if too_much else foreground,
        draw=draw if too_much else None,
    )


def _nonzero_box(images: npt.NDArray[Any]) -> tuple[slice, ...]:
    """Return the box in which any channel is not zero; the whole image when all is zero, as in nnU-Net."""
    mask = (images != 0).any(axis=0)
    box = []
    for axis, size in enumerate(mask.shape):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if len(occupied) else slice(0, size))
    return tuple(box)


def aggregate(cases: Sequence[CaseFingerprint], *, pool: Executor, beat: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Make ``dataset_fingerprint.json``, equal to what nnU-Net writes for the same cases.

    Args:
        cases: Cases in nnU-Net's order, which is sorted by case id.
        pool: Threads to draw with.
        beat: Called as the work proceeds.

    Raises:
        DataError: No case has any foreground.
    """
    draw = intensities_per_case(len(cases))
    drawing = [case for case in cases if case.foreground.shape[1]]
    if not drawing:
        raise DataError("no training case has foreground: all labels are empty, so there is nothing to learn")
    # One empty case makes nnU-Net concatenate an empty float64 list, which turns everything into float64.
    kind = np.result_type(*(case.foreground.dtype for case in drawing), *([np.float64] if len(drawing) < len(cases) else []))
    drawn = np.empty(draw * len(drawing), dtype=kind)  # one channel at a time: 400 MB
    generators = [np.random.RandomState(SEED) for _ in drawing]

    def fill(number: int, channel: int) -> npt.NDArray[np.int64]:
        case, out = drawing[number], drawn[number * draw : (number + 1) * draw]
        if case.draw != draw:
            return _draw_channel(case.foreground[channel], generators[number], out)
        out[:] = case.foreground[channel]
        return np.ones(draw, dtype=np.int64)

    statistics = []
    for channel in range(len(drawing[0].foreground)):
        counts = []
        for future in [pool.submit(fill, number, channel) for number in range(len(drawing))]:
            counts.append(future.result())
            beat()
        values = np.concatenate([case.foreground[channel] for case in drawing]).astype(kind, copy=False)
        percentiles = pool.submit(_percentiles, values, np.concatenate(counts))
        statistics.append({**_moments(drawn, pool), **percentiles.result()})
        beat()
    return {
        "spacings": [list(case.spacing) for case in cases],
        "shapes_after_crop": [list(case.shape) for case in cases],
        "foreground_intensity_properties_per_channel": {str(channel): values for channel, values in enumerate(statistics)},
        "median_relative_size_after_cropping": float(np.median([case.relative_size for case in cases], 0)),
    }


def _draw(foreground: npt.NDArray[Any], draw: int) -> npt.NDArray[Any]:
    """Draw ``draw`` intensities of each channel with replacement, as ``collect_foreground_intensities`` does."""
    generator = np.random.RandomState(SEED)
    drawn = np.empty((len(foreground), draw), dtype=foreground.dtype)
    for values, out in zip(foreground, drawn, strict=True):
        _draw_channel(values, generator, out)
    return drawn


def _draw_channel(values: npt.NDArray[Any], generator: np.random.RandomState, out: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Do ``out[:] = generator.choice(values, len(out))``, and return how often each value was drawn.

    The generator makes the same indices in 32 bits in half the time; pieces that fit the processor's cache save more time.
    """
    counts = np.zeros(len(values), dtype=np.int64)
    for start in range(0, len(out), _PIECE):
        piece = out[start : start + _PIECE]
        index = generator.randint(0, len(values), size=len(piece), dtype=np.int32).astype(np.intp)
        piece[:] = values[index]
        if len(values) < _PIECE:
            counts += np.bincount(index, minlength=len(values))
        else:
            np.add.at(counts, index, 1)
    return counts


def _moments(values: npt.NDArray[Any], pool: Executor) -> dict[str, float]:
    # over the whole array at once, since float32 sums depend on the order
    functions: dict[str, Callable[[npt.NDArray[Any]], Any]] = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
    results = {name: pool.submit(function, values) for name, function in functions.items()}
    return {name: float(future.result()) for name, future in results.items()}


def _percentiles(values: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return ``np.percentile`` of ``np.repeat(values, counts)`` to the last digit, by sorting only the distinct values."""
    order = np.argsort(values)
    ranked, ends = values[order], np.cumsum(counts[order])
    position = (ends[-1] - 1) * (np.array(PERCENTILES) / 100)
    below = np.floor(position)
    lower, upper = (ranked[np.searchsorted(ends, below + step, side="right").clip(max=len(ranked) - 1)] for step in (0, 1))
    part, step = position - below, upper - lower
    found = np.where(part >= 0.5, upper - step * (1 - part), lower + step * part)  # NumPy's own interpolation
    return {"percentile_00_5": float(found[0]), "median": float(found[1]), "percentile_99_5": float(found[2])}


class FingerprintCache:
    """Caches fingerprints of one dataset's cases, one file for each, named by content key. Unreadable ones are computed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, key: str) -> CaseFingerprint | None:
        """Return the cached fingerprint, or None."""
        try:
            # opened here, since np.load leaves a damaged file open; zip members have a checksum
            with open(self.folder / f"{key}.npz", "rb") as file, np.load(file, allow_pickle=False) as stored:
                draw = int(stored["draw"])
                return CaseFingerprint(
                    shape=tuple(int(size) for size in stored["shape"]),
                    spacing=tuple(float(size) for size in stored["spacing"]),
                    relative_size=float(stored["relative_size"]),
                    foreground=stored["foreground"],
                    draw=draw or None,
                )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("fingerprint %s is damaged (%s) and is computed again", key, type(error).__name__)
            return None

    def store(self, key: str, case: CaseFingerprint) -> None:
        """Write a fingerprint atomically."""
        path = self.folder / f"{key}.npz"
        temporary = temporary_beside(path)
        try:
            with open(temporary, "xb") as file:
                np.savez(
                    file,
                    shape=np.array(case.shape),
                    spacing=np.array(case.spacing, dtype=np.float64),
                    relative_size=np.array(case.relative_size),
                    foreground=case.foreground,
                    draw=np.array(case.draw or 0),
                )
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def keep_only(self, keys: Mapping[str, str]) -> None:
        """Forget cases that the dataset no longer has. ``keys``: case to key."""
        wanted = {f"{key}.npz" for key in keys.values()}
        for path in self.folder.iterdir():
            if path.name not in wanted:
                path.unlink(missing_ok=True)
