"""Surface metrics of five labels in 47 million voxels, side by side with DeepMind's surface-distance: time and memory.

    python -m benchmarks.surfaces [--size 360] [--labels 5] [--shift 0] [--rounds 3] [--without-other]

Each implementation runs in a process of its own with one thread. CPU time is what counts on a shared machine. ``--shift`` moves the
prediction by so many voxels along the first axis: far surfaces cost more.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]
SPACING = (1.0, 0.8, 0.8)
TOLERANCE_MM = 1.0
_ORGANS = (  # centre and half axes, in shares of the volume's side
    ((0.3, 0.3, 0.3), (0.2, 0.17, 0.22)),
    ((0.7, 0.3, 0.35), (0.15, 0.2, 0.18)),
    ((0.3, 0.7, 0.6), (0.12, 0.1, 0.2)),
    ((0.7, 0.7, 0.7), (0.2, 0.2, 0.2)),
    ((0.5, 0.5, 0.25), (0.05, 0.06, 0.07)),
)


def organs(size: int, labels: int, moved: float) -> Any:
    """Wavy ellipsoids; ``moved`` shifts each one by up to so many voxels and changes its size a little."""
    random, volume = np.random.default_rng(0), np.zeros((size,) * 3, np.uint8)
    index = np.arange(size, dtype=np.float32)
    for label in range(1, labels + 1):
        centre, half = (np.array(values) * size for values in _ORGANS[(label - 1) % len(_ORGANS)])
        centre, half = centre + random.uniform(-moved, moved, 3), half + random.uniform(-moved, moved, 3) / 2
        x, y, z = ((index - middle) / radius for middle, radius in zip(centre, half, strict=True))
        for plane in np.flatnonzero(x**2 < 1.04):  # one by one, or the peak of memory would be that of making the data
            waves = np.sin(9 * x[plane]) * np.outer(np.sin(7 * y), np.sin(8 * z))
            volume[plane][x[plane] ** 2 + np.add.outer(y**2, z**2) < 1 + 0.04 * waves] = label
    return volume


def ours(reference: Any, prediction: Any, labels: int) -> list[tuple[float, ...]]:
    """NSD, HD95 and Dice of each label."""
    from nnunet_jobs.metrics.surfaces import surface_metrics

    found = surface_metrics(reference, prediction, SPACING, list(range(1, labels + 1)), tolerance_mm=TOLERANCE_MM)
    return [tuple(float(values[name] or 0) for name in ("nsd", "hd95_mm", "dice")) for values in found.values()]


def theirs(reference: Any, prediction: Any, labels: int) -> list[tuple[float, ...]]:
    """The same of surface-distance, label by label."""
    import surface_distance as other

    warnings.simplefilter("ignore", DeprecationWarning)
    result: list[tuple[float, ...]] = []
    for label in range(1, labels + 1):
        masks = reference == label, prediction == label
        distances = other.compute_surface_distances(*masks, SPACING)
        nsd, hd95 = other.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM), other.compute_robust_hausdorff(distances, 95)
        result.append((float(nsd), float(hd95), float(other.compute_dice_coefficient(*masks))))
    return result


def measure(name: str, options: argparse.Namespace) -> None:
    """Run one implementation in this process and print what it took."""
    reference = organs(options.size, options.labels, 0)
    prediction = organs(options.size, options.labels, 2)
    if options.shift:
        prediction = np.roll(prediction, options.shift, 0)
    before, times, values = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [], []
    for _ in range(options.rounds if name == "ours" else 1):
        wall, processor = time.perf_counter(), time.process_time()
        values = {"ours": ours, "theirs": theirs}[name](reference, prediction, options.labels)
        times.append((time.process_time() - processor, time.perf_counter() - wall))
    processor, wall = min(times)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{name}: {processor:.2f} s of CPU, {wall:.2f} s (load {os.getloadavg()[0]:.1f}), at most {more:.0f} MiB more than before")
    for label, (nsd, hd95, dice) in enumerate(values, start=1):
        print(f"  label {label}: NSD {nsd:.6f}, HD95 {hd95:.6f} mm, Dice {dice:.6f}")


def main() -> None:
    """Measure both implementations, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=360, help="voxels along each side")
    parser.add_argument("--labels", type=int, default=5)
    parser.add_argument("--shift", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-other", action="store_true")
    parser.add_argument("--only", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(options.only, options)
        return
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    for name in ("ours",) if options.without_other else ("ours", "theirs"):
        command = [sys.executable, "-m", "benchmarks.surfaces", *sys.argv[1:], "--only", name]
        if subprocess.run(command, cwd=PROJECT, env=environment, check=False).returncode:
            raise SystemExit(f"{name} failed")


if __name__ == "__main__":
    main()
