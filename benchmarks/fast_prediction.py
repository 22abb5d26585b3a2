"""Measures the gain of each option of the fast mode on real cases, and how many voxels it changes.

    python -m benchmarks.fast_prediction [--source FOLDER] [--cases 8] [--epochs 2]

Each network is trained for a minute (Dice about 0.75), because a network with random weights has borders everywhere.
Times are those of a warm predictor for all cases, the best of two runs. The second table is only for the step from
logits to labels, with many classes and a change of spacing, which these cases do not have. ``half`` needs CUDA and is
left out without it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]

from benchmarks.prediction import SOURCE  # noqa: E402
from benchmarks.training import CORES, ITERATIONS, RATE, TINY  # noqa: E402
from devtools.testbed.prediction import job_dir, write_card  # noqa: E402
from devtools.testbed.preprocessing import DATASET, register, result_of, start  # noqa: E402
from nnunet_jobs.context import StepContext  # noqa: E402
from nnunet_jobs.contract.storage.workspace import Workspace  # noqa: E402
from nnunet_jobs.runner.attempt_limits import environment  # noqa: E402

TINY_3D = {
    "inherits_from": "3d_fullres",
    "architecture": {
        "arch_kwargs": {"features_per_stage": [16, 32, 64, 128], "n_conv_per_stage": [1] * 4, "n_conv_per_stage_decoder": [1] * 3}
    },
}
CONFIGURATIONS = {"2d_tiny": TINY, "3d_tiny": TINY_3D}
OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "tiles": {"fast": ("tiles",)},
    "resampling": {"fast": ("resampling",)},
    "compile": {"fast": ("compile",)},
    "half": {"fast": ("half",)},
    "no mirroring": {"mirroring": False},
    "tiles, resampling": {"fast": ("resampling", "tiles")},
    "tiles, resampling, no mirroring": {"fast": ("resampling", "tiles"), "mirroring": False},
}
CLASSES, NETWORK_GRID, IMAGE_GRID = 30, (128, 160, 160), (144, 192, 192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--cases", type=int, default=4, help="cases to predict")
    parser.add_argument("--epochs", type=int, default=2, help=f"of {ITERATIONS} iterations, for each network")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    names = sorted(path.name.removesuffix(".nii.gz") for path in (options.source / "imagesTr").glob("[!.]*.nii.gz"))[: 32 + options.cases]
    work = Path(tempfile.mkdtemp(prefix="fast_"))
    try:
        workspace = Workspace.below(work / "work", input_roots=(str(work),))
        register(workspace, options.source, names, holdout=names[32:])
        made = result_of(start(workspace, configurations=list(CONFIGURATIONS), custom_configurations=CONFIGURATIONS))
        print(f"{'':<44}{'seconds':>9}{'gain':>7}{'voxels that differ':>24}{'Dice':>8}")
        for configuration in CONFIGURATIONS:
            compare(workspace, configuration, train(workspace, made["version"], configuration, options.epochs))
        labelling()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def train(workspace: Workspace, version: str, configuration: str, epochs: int) -> str:
    """Train one fold in another process, and return the model's id."""
    params = {
        "dataset": 4, "version": version, "configuration": configuration, "fold": 0, "epochs": epochs, "iterations": ITERATIONS,
        "optimizer": "adamw", "initial_lr": RATE,
    }  # fmt: skip
    job = Path(workspace.jobs) / f"train-{configuration}"
    job.mkdir(parents=True)
    code = "import sys; sys.path[:0] = sys.argv[1:3]; from benchmarks.training import step; step(*sys.argv[3:])"
    request = json.dumps([workspace.to_json(), str(job), params])
    limits = environment(cpus=CORES, device="cpu", gpus=(), step="train")
    command = [sys.executable, "-c", code, str(PROJECT), str(PROJECT / "plugins"), request]
    done = subprocess.run(command, env={**os.environ, **limits}, check=True, capture_output=True, text=True)
    return str(json.loads(done.stdout.splitlines()[-1])["model"])


def compare(workspace: Workspace, configuration: str, model: str) -> None:
    """Print the rows of one network."""
    import torch

    from nnunet_jobs.contract.storage.predictions import mean_dice
    from nnunet_jobs.prediction.incoming import collect_cases
    from nnunet_jobs.prediction.model import resolve_model
    from nnunet_jobs.prediction.predictor import Predictor
    from nnunet_jobs.prediction.settings import Settings

    write_card(workspace.model_root(model) / DATASET, {configuration: [0]}, promote=workspace)
    cases = collect_cases("holdout", workspace=workspace, dataset=DATASET, file_ending=".nii.gz", channels=1).cases
    exact: dict[str, Any] = {}
    reference = 0.0
    for name, values in OPTIONS.items():
        label = f"{configuration}, {len(cases)} cases: {name}"
        if name == "half" and not torch.cuda.is_available():
            print(f"{label:<44}{'needs CUDA':>9}")
            continue
        context = StepContext(workspace=workspace, job=job_dir(workspace), cpus=CORES)
        predictor = Predictor(resolve_model(workspace, DATASET, None), context, Settings(**values))
        folder = Path(workspace.output_roots[0]) / configuration / name.replace(", ", "-").replace(" ", "-")
        folder.mkdir(parents=True)
        predictor.predict(cases, folder)  # warm-up, which also compiles
        records: list[dict[str, Any]] = []

        def once(predictor: Any = predictor, folder: Path = folder, records: list[dict[str, Any]] = records) -> None:
            records[:] = predictor.predict(cases, folder)

        seconds = min(timed(once), timed(once))
        found = {path.name: voxels(path) for path in folder.glob("*.nii.gz")}
        dice = mean_dice(records)
        exact, reference = (found, seconds) if not exact else (exact, reference)
        differ = sum(int((found[case] != exact[case]).sum()) for case in exact)
        foreground = sum(int((exact[case] > 0).sum()) for case in exact)
        print(f"{label:<44}{seconds:>9.2f}{reference / seconds:>7.2f}{f'{differ} of {foreground}':>24}{dice['mean'] if dice else 0:>8.4f}")


def voxels(path: Path) -> Any:
    import nibabel
    import numpy as np

    return np.asarray(nibabel.load(path).dataobj)


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def labelling() -> None:
    """Measure the step from logits to labels: stock, ours, ours with torch's linear resampling."""
    import numpy as np
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from scipy.ndimage import zoom

    from devtools.testbed.stages import stage_of_labels
    from nnunet_jobs.prediction.labelling import label_by_class

    network = stage_of_labels({"background": 0, **{f"l{value}": value for value in range(1, CLASSES)}}, None, (1.0, 1.0, 1.0))
    random = np.random.default_rng(0)
    coarse = random.normal(size=(CLASSES, *(size // 16 for size in NETWORK_GRID))) * 8
    logits = np.stack([zoom(values, 16, order=1).astype(np.float16) for values in coarse])
    properties = {
        "spacing": [old / new for old, new in zip(NETWORK_GRID, IMAGE_GRID, strict=True)],
        "shape_after_cropping_and_before_resampling": IMAGE_GRID,
        "shape_before_cropping": list(IMAGE_GRID),
        "bbox_used_for_cropping": [[0, size] for size in IMAGE_GRID],
    }

    def stock() -> Any:
        managers = (network.plans_manager, network.configuration_manager, network.label_manager)
        return convert_predicted_logits_to_segmentation_with_correct_shape(logits, *managers, properties, num_threads_torch=CORES)

    ways: dict[str, Callable[[], Any]] = {
        "stock": stock,
        "exact": lambda: label_by_class(network, logits, properties, threads=CORES),
        "resampling": lambda: label_by_class(network, logits, properties, threads=CORES, linear=True),
    }
    print(f"\nlogits to labels, {CLASSES} classes, {NETWORK_GRID} to {IMAGE_GRID} voxels")
    print(f"{'':<44}{'seconds':>9}{'gain':>7}{'voxels that differ':>24}")
    reference, exact = 0.0, None
    for name, way in ways.items():
        begin = time.perf_counter()
        found = way()
        seconds = time.perf_counter() - begin
        reference, exact = (seconds, found) if exact is None else (reference, exact)
        print(f"{name:<44}{seconds:>9.2f}{reference / seconds:>7.2f}{f'{int((found != exact).sum())} of {exact.size}':>24}")


if __name__ == "__main__":
    main()
