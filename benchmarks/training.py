"""Compares training with the stock command: the cheap recipe on 40 cases, one fold (32 / 8), with validation.

    python benchmarks/training.py [--source FOLDER] [--cases 40] [--epochs 4] [--rounds 1]

Stock runs an external trainer class with the same recipe (``nnUNetv2_train -device cpu``, its own defaults otherwise).
Times are those of whole processes with imports. The cost of our checkpoint of every epoch is the time between the
reports of two epochs minus nnU-Net's own epoch time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]

from devtools.testbed.preprocessing import DATASET, register, result_of, start  # noqa: E402
from nnunet_jobs.contract.job.folder import JobDir  # noqa: E402
from nnunet_jobs.contract.storage.files import read_json  # noqa: E402
from nnunet_jobs.contract.storage.workspace import Workspace  # noqa: E402
from nnunet_jobs.runner.attempt_limits import environment  # noqa: E402

ITERATIONS, RATE = 50, 3e-3
TINY = {
    "inherits_from": "2d",
    "batch_size": 16,
    "architecture": {
        "arch_kwargs": {
            "n_stages": 4, "features_per_stage": [16, 32, 64, 128], "kernel_sizes": [[3, 3]] * 4,
            "strides": [[1, 1], [2, 2], [2, 2], [2, 2]], "n_conv_per_stage": [1] * 4, "n_conv_per_stage_decoder": [1] * 3,
        }
    },
}  # fmt: skip
STOCK = f"""
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring


class CheapTrainer(nnUNetTrainerNoMirroring):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.initial_lr = EPOCHS, {ITERATIONS}, {RATE}

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay, amsgrad=True)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
"""
CORES = int(os.environ.get("BENCH_CORES", len(os.sched_getaffinity(0))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=PROJECT.parent / "shared" / "data" / "Task04_Hippocampus")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1, help="each round runs stock and ours one after the other")
    options = parser.parse_args()
    names = sorted(path.name.removesuffix(".nii.gz") for path in (options.source / "imagesTr").glob("[!.]*.nii.gz"))
    work = Path(tempfile.mkdtemp(prefix="training_"))
    rows: dict[str, list[tuple[float, float]]] = {"stock": [], "stock, nnUNet_n_proc_DA=0": [], "ours": []}
    try:
        workspace = Workspace.below(work / "work")
        register(workspace, options.source, names[: options.cases])
        made = result_of(start(workspace, configurations=["2d_tiny"], custom_configurations={"2d_tiny": TINY}))
        for number in range(options.rounds):
            rows["stock"].append(stock(workspace, made["version"], work / f"stock{number}", options.epochs))
            bare = stock(workspace, made["version"], work / f"bare{number}", options.epochs, nnUNet_n_proc_DA="0")
            rows["stock, nnUNet_n_proc_DA=0"].append(bare)
            shutil.rmtree(workspace.results, ignore_errors=True)
            seconds, dice, job = ours(workspace, made["version"], number, options.epochs)
            rows["ours"].append((seconds, dice))
        phases(job)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    reference = statistics.median(seconds for seconds, _ in rows["stock"])
    print(f"\n{'':<34}{'seconds':>9}{'of stock':>10}{'Dice':>8}   target: at most 0.5 of stock, same Dice within noise")
    for what, runs in rows.items():
        seconds, dice = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"{what:<34}{seconds:>9.1f}{seconds / reference:>10.2f}{dice:>8.3f}")


def stock(workspace: Workspace, version: str, results: Path, epochs: int, **variables: str) -> tuple[float, float]:
    """Run nnU-Net's own command, and return its seconds and Dice."""
    trainers = results / "trainers"
    trainers.mkdir(parents=True)
    (trainers / "cheap.py").write_text(STOCK.replace("EPOCHS", str(epochs)))
    command = [str(Path(sys.executable).with_name("nnUNetv2_train")), DATASET, "2d_tiny", "0", "-tr", "CheapTrainer", "-device", "cpu"]
    paths = workspace.nnunet_environment(version=version) | {"nnUNet_results": str(results), "nnUNet_extTrainer": str(trainers)}
    begin = time.perf_counter()
    subprocess.run(command, env={**os.environ, **paths, **variables}, check=True, capture_output=True)
    seconds = time.perf_counter() - begin
    print(f"  stock {variables or ''}: {seconds:.1f} s (load {os.getloadavg()[0]:.1f})", flush=True)
    summary = next(results.glob("*/*/fold_0/validation/summary.json"))
    return seconds, float(read_json(summary)["foreground_mean"]["Dice"])


def ours(workspace: Workspace, version: str, number: int, epochs: int) -> tuple[float, float, JobDir]:
    """Run our step in another process with a job's environment, and return seconds, Dice and the job."""
    params = {
        "dataset": 4, "version": version, "configuration": "2d_tiny", "fold": 0, "epochs": epochs, "iterations": ITERATIONS,
        "optimizer": "adamw", "initial_lr": RATE, "mirroring": False,
    }  # fmt: skip
    job = JobDir(Path(workspace.jobs) / f"train{number}")
    job.path.mkdir(parents=True)
    code = "import sys; sys.path[:0] = sys.argv[1:3]; from benchmarks.training import step; step(*sys.argv[3:])"
    command = [sys.executable, "-c", code, str(PROJECT), str(PROJECT / "plugins"), json.dumps([workspace.to_json(), str(job.path), params])]
    begin = time.perf_counter()
    limits = environment(cpus=CORES, device="cpu", gpus=(), step="train")
    done = subprocess.run(command, env={**os.environ, **limits}, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    print(f"  ours: {seconds:.1f} s (load {os.getloadavg()[0]:.1f})", flush=True)
    return seconds, float(json.loads(done.stdout.splitlines()[-1])["dice"]), job


def step(request: str) -> None:
    """Run the step in the child process."""
    from nnunet_jobs.context import StepContext
    from nnunet_jobs.contract.steps.params import TrainParams
    from nnunet_jobs.steps.train import run

    workspace, folder, params = json.loads(request)
    context = StepContext(workspace=Workspace.from_json(workspace), job=JobDir(folder), cpus=CORES)
    context.progress("begin")
    result = run(TrainParams.from_json(params), context)
    context.progress("end")
    print("\n" + json.dumps(result))


def phases(job: JobDir) -> None:
    """Print how our last run spent its time."""
    records: list[dict[str, Any]] = job.read_metrics()[0]
    train = [record for record in records if record["phase"] == "train"]
    validate = [record for record in records if record["phase"] == "validate"]
    gaps = [(later["t"] - former["t"], later["epoch_s"]) for former, later in itertools.pairwise(train)]
    start_s = train[0]["t"] - train[0]["epoch_s"] - records[0]["t"]
    print(f"\n  ours: {start_s:.1f} s imports and start, {sum(record['epoch_s'] for record in train):.1f} s epochs,")
    print(f"  {statistics.mean(gap - epoch for gap, epoch in gaps):.2f} s an epoch for checkpoint, verification and report,")
    print(f"  {records[-1]['t'] - validate[0]['t']:.1f} s validation")


if __name__ == "__main__":
    main()
