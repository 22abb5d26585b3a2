"""Compares prediction with the stock command: 1 and 8 small cases, 2d and 3d_fullres, cold and warm, and their bytes.

    python -m benchmarks.prediction [--source FOLDER]

Weights are random, because they do not change a network's time. 3d_fullres mirrors, 2d_tiny does not, as in its recipe.
Cold is a whole job with the runner, imports and model; warm is the same predictor after its first case.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]

from airflow_nnunet.backends import get_backend  # noqa: E402
from airflow_nnunet.backends.base import Watch  # noqa: E402
from devtools.testbed.prediction import job_dir, save_random_folds, write_card  # noqa: E402
from devtools.testbed.preprocessing import DATASET, register, result_of, start  # noqa: E402
from nnunet_jobs.context import StepContext  # noqa: E402
from nnunet_jobs.contract.job.spec import JobSpec, Resources  # noqa: E402
from nnunet_jobs.contract.steps.params import PredictParams  # noqa: E402
from nnunet_jobs.contract.storage.workspace import Workspace  # noqa: E402

RECIPE = {"features_per_stage": [16, 32, 64, 128], "n_conv_per_stage": [1] * 4, "n_conv_per_stage_decoder": [1] * 3}
TINY = {"2d_tiny": {"inherits_from": "2d", "batch_size": 16, "architecture": {"arch_kwargs": RECIPE}}}
CONFIGURATIONS = ("2d_tiny", "3d_fullres")
SOURCE = Path(os.environ.get("NNUNET_TEST_DATA", PROJECT.parent / "shared" / "data")) / "Task04_Hippocampus"
MEASURED = (("2d_tiny", 1, "<= 0.15 s"), ("2d_tiny", 8, ">= 10x"), ("3d_fullres", 8, "network + 5 %"))


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def cli(workspace: Workspace, images: Path, out: Path, configuration: str, *more: str) -> None:
    command = [str(Path(sys.executable).with_name("nnUNetv2_predict")), "-i", str(images), "-o", str(out), "-d", DATASET]
    subprocess.run(
        [*command, "-c", configuration, "-f", "0", "-device", "cpu", *more],
        env={**os.environ, **workspace.nnunet_environment(model="m1")},
        check=True,
        capture_output=True,
        timeout=600,
    )


def job(workspace: Workspace, number: int, images: Path, out: Path) -> None:
    """Run a whole job: submit it, watch it, read its result."""
    params = PredictParams(dataset=DATASET, cases=str(images), output=str(out)).to_json()
    spec = JobSpec(
        job_id=f"predict-benchmark{number:03d}", step="predict", params=params, workspace=workspace, resources=Resources(gpus=1, cpus=2)
    )
    backend, watch = get_backend("local"), Watch(lost_after_s=60)
    submitted = backend.submit(spec)
    while not (status := backend.status(submitted, watch)).final:
        time.sleep(0.02)
    status.unwrap()


def same(left: Path, right: Path) -> bool:
    files = {path.name: path.read_bytes() for path in left.glob("*.nii.gz")}
    return bool(files) and files == {path.name: path.read_bytes() for path in right.glob("*.nii.gz")}


def compare(
    workspace: Workspace, folder: Path, held_out: list[Path], configuration: str, *, number: int, target: str
) -> list[tuple[str, float, float, str, str]]:
    """Return the rows of one configuration and number of cases."""
    images, out = folder / "images", Path(workspace.output_roots[0]) / str(number)
    images.mkdir(parents=True)
    for path in held_out:
        shutil.copy(path, images)
    name = f"{len(held_out)} cases, {configuration}"
    stock = seconds(lambda: cli(workspace, images, folder / "cli", configuration))
    serial = seconds(lambda: cli(workspace, images, folder / "serial", configuration, "-npp", "0", "-nps", "0"))
    cold = seconds(lambda: job(workspace, number, images, out / "cold"))
    warm, network = measure_warm(workspace, images, out / "warm")
    equal = all(same(folder / "cli", out / kind) for kind in ("cold", "warm"))
    print(f"  {name}: stock {stock:.1f} s, serial {serial:.1f} s, cold {cold:.1f} s, warm {warm:.2f} s", flush=True)
    return [
        (f"{name}: stock", stock, 1, "", ""),
        (f"{name}: stock, -npp 0 -nps 0", serial, stock / serial, "", ""),
        (f"{name}: ours, cold job", cold, stock / cold, "", ""),
        (f"{name}: ours, warm", warm, stock / warm, target, f"network {network:.2f} s; bytes {'equal' if equal else 'DIFFER'}"),
    ]


def prepare(work: Path, source: Path) -> tuple[Workspace, Path, list[Path]]:
    """Make a workspace with a random model ``m1``, and return it, the model's folder, and 8 held-out images."""
    names = sorted(path.name.removesuffix(".nii.gz") for path in (source / "imagesTr").glob("[!.]*.nii.gz"))[:20]
    workspace = Workspace.below(work / "work", input_roots=(str(work),))
    register(workspace, source, names, holdout=names[12:])
    version = result_of(start(workspace, configurations=list(CONFIGURATIONS), custom_configurations=TINY))["version"]
    folder = workspace.preprocessed_root(version) / DATASET
    root = save_random_folds(
        workspace, folder, model="m1", folds=[0], configurations=CONFIGURATIONS, without_mirroring=["2d_tiny"]
    )  # the cheap recipe trains without mirroring
    return workspace, root, sorted((workspace.raw_dataset(DATASET) / "imagesTs").glob("*.nii.gz"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="prediction_"))
    rows: list[tuple[str, float, float, str, str]] = []
    try:
        workspace, root, held_out = prepare(work, options.source)
        for number, (configuration, count, target) in enumerate(MEASURED):
            write_card(root, {configuration: [0]}, promote=workspace)
            rows += compare(workspace, work / str(number), held_out[:count], configuration, number=number, target=target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{'':<44}{'seconds':>9}{'ratio':>8}  {'target':<14}")
    for what, took, ratio, target, note in rows:
        print(f"{what:<44}{took:>9.2f}{ratio:>8.1f}  {target:<14}{note}")


def measure_warm(workspace: Workspace, images: Path, out: Path) -> tuple[float, float]:
    """Predict with a predictor in memory, and return the total seconds and those of the network."""
    from nnunet_jobs.prediction.incoming import collect_cases
    from nnunet_jobs.prediction.model import resolve_model
    from nnunet_jobs.prediction.network import StageNetwork
    from nnunet_jobs.prediction.predictor import Predictor

    model = resolve_model(workspace, DATASET, None)
    cases = collect_cases(images, workspace=workspace, dataset=DATASET, file_ending=".nii.gz", channels=1).cases
    predictor = Predictor(model, StepContext(workspace=workspace, job=job_dir(workspace), cpus=2))
    out.mkdir(parents=True)
    predictor.predict(cases[:1], out)
    spent = 0.0
    plain = StageNetwork.logits

    def measured(self: StageNetwork, *arguments: Any, **options: Any) -> Any:
        nonlocal spent
        begin = time.perf_counter()
        try:
            return plain(self, *arguments, **options)
        finally:
            spent += time.perf_counter() - begin

    StageNetwork.logits = measured  # type: ignore[method-assign]
    try:
        took = seconds(lambda: predictor.predict(cases, out))
    finally:
        StageNetwork.logits = plain  # type: ignore[method-assign]
    return took, spent


if __name__ == "__main__":
    main()
