"""Compares the whole pipeline with stock commands one after another, on 40 cases with the same recipe.

    python -m benchmarks.pipeline [--source FOLDER] [--cases 40] [--predict 8] [--folds 5] [--without-stock]

Both register, preprocess 2d and 3d_fullres, train five folds of `2d_tiny` (4 epochs x 50 iterations), find the best,
and predict 8 cases with all folds. Ours runs as jobs, with two cores two folds at once with one thread each. The stock
commands run as in a shell script. Airflow's own time (under a second a step) is shown by `make demo`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]

from airflow_nnunet.backends import Watch, get_backend  # noqa: E402
from nnunet_jobs.contract.job.spec import JobSpec, Resources, make_job_id  # noqa: E402
from nnunet_jobs.contract.storage.files import read_json, write_json  # noqa: E402
from nnunet_jobs.contract.storage.workspace import Workspace  # noqa: E402

ARCHITECTURE = {"features_per_stage": [16, 32, 64, 128], "n_conv_per_stage": [1] * 4, "n_conv_per_stage_decoder": [1] * 3}
TINY = {"inherits_from": "2d", "batch_size": 16, "architecture": {"arch_kwargs": ARCHITECTURE}}
RECIPE = {"epochs": 4, "iterations": 50, "val_iterations": 10, "optimizer": "adamw", "initial_lr": 3e-3, "mirroring": False}
TRAINER = """
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerRecipe(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 4, 50, 10
        self.initial_lr = 3e-3

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay, amsgrad=True)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        rotation, dummy, patch, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return rotation, dummy, patch, None
"""


def cut_source(source: Path, folder: Path, cases: int, more: int) -> tuple[Path, Path]:
    """Make a Decathlon folder with the first cases, and a folder with images of the next ones to predict."""
    description = read_json(source / "dataset.json")
    task, unseen = folder / "Task04_Hippocampus", folder / "unseen"
    for part in (task / "imagesTr", task / "labelsTr", task / "imagesTs", unseen):
        part.mkdir(parents=True)
    for item in description["training"][:cases]:
        for kind in ("image", "label"):
            shutil.copy(source / item[kind], task / item[kind])
    for item in description["training"][cases : cases + more]:
        name = Path(item["image"]).name.removesuffix(".nii.gz")
        shutil.copy(source / item["image"], unseen / f"{name}_0000.nii.gz")
    write_json(task / "dataset.json", {**description, "training": description["training"][:cases], "test": [], "numTraining": cases})
    return task, unseen


class Ours:
    """Runs the steps as jobs of the local backend."""

    def __init__(self, root: Path) -> None:
        slots = os.cpu_count() or 1
        self.workspace = Workspace.below(root, input_roots=(str(root.parent),), cpu_slots=slots)
        self._backend = get_backend("local")

    def run(self, step: str, *requests: dict[str, Any], gpus: int = 0) -> list[dict[str, Any]]:
        """Submit all jobs and wait for them. The leases let as many compute as there are slots."""
        specs = [
            JobSpec(
                job_id=make_job_id(step, json.dumps(params)), step=step, params=params, workspace=self.workspace,
                resources=Resources(gpus=gpus),
            )
            for params in requests
        ]  # fmt: skip
        jobs = [(self._backend.submit(spec), Watch(lost_after_s=60)) for spec in specs]
        results = []
        for job, watch in jobs:
            while not (status := self._backend.status(job, watch)).final:
                time.sleep(0.05)
            results.append(dict(status.unwrap()))
        return results


def ours(task: Path, unseen: Path, root: Path, folds: int) -> tuple[list[tuple[str, float]], float]:
    """Run our pipeline, and return the seconds of each part and the cross-validation Dice."""
    jobs, times = Ours(root), [("begin", time.perf_counter())]

    def mark(name: str) -> None:
        times.append((name, time.perf_counter()))

    jobs.run("register", {"dataset_id": 4, "name": "Hippocampus", "source": str(task), "holdout_fraction": 0.0})
    configurations = ["2d", "3d_fullres", "2d_tiny"]
    jobs.run("preprocess", {"datasets": [4], "configurations": configurations, "custom_configurations": {"2d_tiny": TINY}, "folds": folds})
    mark("register, preprocess")
    trained = jobs.run("train", *({"dataset": 4, "configuration": "2d_tiny", "fold": fold, **RECIPE} for fold in range(folds)), gpus=1)
    mark(f"train {folds} folds")
    selection = {"dataset": 4, "model": trained[0]["model"], "folds": list(range(folds)), "ensembles": False, "promote": "always"}
    (best,) = jobs.run("find_best_config", selection, gpus=1)
    mark("find best")
    jobs.run("predict", {"dataset": 4, "cases": str(unseen), "output": f"{jobs.workspace.output_roots[0]}/unseen"}, gpus=1)
    mark("predict")
    return [(name, at - before) for (_, before), (name, at) in itertools.pairwise(times)], best["cv_dice"]


def stock(task: Path, unseen: Path, root: Path, folds: int) -> tuple[list[tuple[str, float]], float]:
    """Run nnU-Net's own commands, and return the same."""
    trainers = root / "trainers"
    trainers.mkdir(parents=True)
    (trainers / "recipe.py").write_text(TRAINER)
    environment = {
        **os.environ,
        "nnUNet_raw": str(root / "raw"),
        "nnUNet_preprocessed": str(root / "preprocessed"),
        "nnUNet_results": str(root / "results"),
        "nnUNet_extTrainer": str(trainers),
    }
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()

    def command(name: str, *arguments: object) -> None:
        done = subprocess.run(
            [str(Path(sys.executable).with_name(name)), *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name} exited {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")

    times = [("begin", time.perf_counter())]
    command("nnUNetv2_convert_MSD_dataset", "-i", task)
    command("nnUNetv2_plan_and_preprocess", "-d", 4, "-c", "2d", "3d_fullres", "--verify_dataset_integrity", "--no_pbar")
    plans_file = root / "preprocessed" / "Dataset004_Hippocampus" / "nnUNetPlans.json"
    plans = read_json(plans_file)
    plain = plans["configurations"]["2d"]["architecture"]
    kept = {name: plain["arch_kwargs"][name][:4] for name in ("kernel_sizes", "strides")}
    plans["configurations"]["2d_tiny"] = {
        "inherits_from": "2d",
        "batch_size": 16,
        "architecture": {**plain, "arch_kwargs": {**plain["arch_kwargs"], **kept, **ARCHITECTURE, "n_stages": 4}},
    }
    plans_file.write_text(json.dumps(plans))
    times.append(("register, preprocess", time.perf_counter()))
    for fold in range(folds):
        command("nnUNetv2_train", 4, "2d_tiny", fold, "-tr", "nnUNetTrainerRecipe", "-device", "cpu")
    times.append((f"train {folds} folds", time.perf_counter()))
    numbers = [str(fold) for fold in range(folds)]
    command("nnUNetv2_find_best_configuration", 4, "-c", "2d_tiny", "-tr", "nnUNetTrainerRecipe", "-f", *numbers, "--disable_ensembling")
    times.append(("find best", time.perf_counter()))
    command(
        "nnUNetv2_predict", "-i", unseen, "-o", root / "out", "-d", 4, "-c", "2d_tiny", "-tr", "nnUNetTrainerRecipe", "-f", *numbers,
        "-device", "cpu",
    )  # fmt: skip
    times.append(("predict", time.perf_counter()))
    found = read_json(next((root / "results").glob("*/inference_information.json")))
    dice = found["best_model_or_ensemble"]["result_on_crossval_pre_pp"]
    return [(name, at - before) for (_, before), (name, at) in itertools.pairwise(times)], float(dice)


def show(mine: Sequence[tuple[str, float]], theirs: Sequence[tuple[str, float]], dice: tuple[float, float | None]) -> None:
    print(f"\n{'':<24}{'stock s':>9}{'ours s':>9}{'ratio':>8}{'target':>8}")
    other = dict(theirs)
    for name, took in (*mine, ("all", sum(took for _, took in mine))):
        against = sum(other.values()) if name == "all" else other.get(name, 0.0)
        target = ">= 4" if name == "all" else ""
        print(f"{name:<24}{against:>9.1f}{took:>9.1f}{against / took:>8.1f}{target:>8}")
    print(f"\ncross-validation Dice: ours {dice[0]:.3f}, stock {dice[1] if dice[1] is None else round(dice[1], 3)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=PROJECT.parent / "shared" / "data" / "Task04_Hippocampus")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--predict", type=int, default=8)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--without-stock", action="store_true")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="pipeline_"))
    try:
        task, unseen = cut_source(options.source, work, options.cases, options.predict)
        mine, dice = ours(task, unseen, work / "ours", options.folds)
        print("  ours:", ", ".join(f"{name} {took:.1f} s" for name, took in mine), flush=True)
        theirs, stock_dice = ([], None) if options.without_stock else stock(task, unseen, work / "stock", options.folds)
        show(mine, theirs, (dice, stock_dice))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
