"""A small trained model (two configurations, two folds, probabilities), runs of the selection step, and stock nnU-Net beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import JobError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.steps.params import STEPS
from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.contract.storage.permissions import workspace_umask
from nnunet_jobs.contract.storage.workspace import Workspace

PROJECT = Path(__file__).resolve().parent.parent.parent
DATASET = "Dataset005_Phantom"
CONFIGURATIONS = ("2d_micro", "3d_micro")
_STAGES = {"features_per_stage": [8, 16, 32], "n_conv_per_stage": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1]}
CUSTOM = {
    "2d_micro": {"inherits_from": "2d", "batch_size": 8, "architecture": {"arch_kwargs": _STAGES}},
    "3d_micro": {"inherits_from": "3d_fullres", "batch_size": 2, "patch_size": [32, 40, 32], "architecture": {"arch_kwargs": _STAGES}},
}


def workspace_below(root: Path) -> Workspace:
    """The workspace that :func:`train_model` fills."""
    return Workspace.below(root, input_roots=(str(root),))


def context(workspace: Workspace, name: str = "select-00000000") -> StepContext:
    """A step's surroundings without a runner."""
    job = JobDir(Path(workspace.jobs) / name)
    with workspace_umask(workspace):
        job.path.mkdir(parents=True, exist_ok=True)
    return StepContext(workspace=workspace, job=job)


def train_model(root: Path) -> Workspace:
    """Nine phantoms (six of them trained on) through the real steps to four complete folds."""
    from nnunet_jobs.dataset.phantom import write_phantom

    workspace = workspace_below(root)
    source = root / "Task05_Phantom"
    write_phantom(source, cases=9, seed=1)
    data = {"datasets": [5], "configurations": list(CONFIGURATIONS), "custom_configurations": CUSTOM, "folds": 2}
    register = {"dataset_id": 5, "name": "Phantom", "source": str(source), "holdout_fraction": 0.2}
    run_steps(workspace, ("register", register), ("preprocess", data))
    training = {"dataset": 5, "epochs": 2, "iterations": 30, "val_iterations": 1, "optimizer": "adamw", "initial_lr": 0.005, "seed": 1}
    folds = [(configuration, fold) for configuration in CONFIGURATIONS for fold in (0, 1)]
    run_steps(
        workspace, *(("train", {**training, "configuration": name, "fold": fold, "npz": True, "mirroring": False}) for name, fold in folds)
    )
    return workspace


def copy_of(workspace: Workspace, root: Path) -> Workspace:
    """The same workspace elsewhere, to be changed freely."""
    shutil.copytree(Path(workspace.raw).parent, root, symlinks=True, dirs_exist_ok=True)
    return workspace_below(root)


def model_of(workspace: Workspace) -> str:
    """The only model."""
    (path,) = (Path(workspace.results) / ".versions").glob(f"*/{DATASET}")
    return path.parent.name


def second_model(workspace: Workspace, first: str, name: str, *, gain: float = 0.0, **metrics: Any) -> str:
    """Another selected model: a copy of the first under another name, whose card claims other metrics, and its hold-out scores a gain."""
    root = workspace.model_root(name) / DATASET
    shutil.copytree(workspace.model_root(first) / DATASET, root)
    card = read_json(root / "model.json")
    write_json(root / "model.json", {**card, "model": name, "metrics": {**card["metrics"], **metrics}})
    for path in (root / "holdout" / ".scores").glob("*.score.json"):
        scores = read_json(path)
        write_json(path, {**scores, "dice": {label: dice + gain for label, dice in scores["dice"].items()}})
    return name


def run_steps(workspace: Workspace, *steps: tuple[str, dict[str, Any]], check: bool = True) -> list[dict[str, Any]]:
    """Run steps in one process of their own, which nnU-Net's environment variables ask for.

    Returns:
        Their results; with ``check=False`` a refusal is ``{"failure_class", "message"}``.
    """
    request = {"workspace": workspace.to_json(), "steps": steps, "check": check}
    return list(call("run_here", request))


def stock_selection(workspace: Workspace, folds: Sequence[int]) -> dict[str, Any]:
    """What nnU-Net's own find_best_configuration says of the only model; it writes its files into the workspace."""
    return dict(call("stock_here", {"workspace": workspace.to_json(), "model": model_of(workspace), "folds": list(folds)}))


def call(function: str, request: dict[str, Any]) -> Any:
    """Call a function of this module in a fresh process."""
    path = os.pathsep.join([str(PROJECT / "plugins"), str(PROJECT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", f"from support import selection; selection.answer(selection.{function})", json.dumps(request)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=500,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{function}: exit {done.returncode}: {done.stderr.decode()[-6000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def answer(function: Any) -> None:
    """In the fresh process: print the result as the last line."""
    print("\n" + json.dumps(function(json.loads(sys.argv[-1]))))


def run_here(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps one after another."""
    import importlib

    workspace = Workspace.from_json(request["workspace"])
    results = []
    for number, (step, fields) in enumerate(request["steps"]):
        module = importlib.import_module(f"nnunet_jobs.steps.{step}")
        try:
            surroundings = context(workspace, f"{step}-{number:08d}")
            results.append(module.run(STEPS[step].from_json(fields), surroundings))
            write_json(surroundings.job.result_path, {"result": results[-1]})
        except JobError as error:
            if request["check"]:
                raise
            results.append({"failure_class": str(error.failure_class), "message": str(error)})
    return results


def _fork_in_place_of_spawn() -> None:
    """nnU-Net starts a dozen pools of spawned processes, each of which imports torch; forked ones do the same in a tenth of the time."""
    import multiprocessing

    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment]


def stock_here(request: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net's find_best_configuration."""
    workspace = Workspace.from_json(request["workspace"])
    version = read_json(workspace.model_root(request["model"]) / DATASET / "settings.json")["version"]
    os.environ.update(workspace.nnunet_environment(version=version, model=request["model"]))
    _fork_in_place_of_spawn()
    from nnunetv2.evaluation.find_best_configuration import dumb_trainer_config_plans_to_trained_models_dict, find_best_configuration

    models = dumb_trainer_config_plans_to_trained_models_dict(["nnUNetTrainer"], list(CONFIGURATIONS), ["nnUNetPlans"])
    result: dict[str, Any] = find_best_configuration(DATASET, models, num_processes=1, folds=request["folds"])
    return result


def postprocess_both(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours and nnU-Net's postprocessing of made-up segmentations: ``{"ours", "stock"}``, each what postprocessing.json says.

    ``request`` names the trained model whose plans are used, a scratch folder, and trials of ``labels`` and ``seed``.
    """
    _fork_in_place_of_spawn()
    from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

    from nnunet_jobs.selection import compare, postprocessing
    from nnunet_jobs.selection.trained import Trained

    workspace = Workspace.from_json(request["workspace"])
    plans = read_json(Path(workspace.preprocessed) / DATASET / "nnUNetPlans.json")
    found = []
    for trial in request["trials"]:
        folder = Path(request["scratch"]) / f"{trial['name']}-{trial['seed']}"
        preprocessed, cases = _made_up(folder, plans, trial)
        trained = Trained(
            dataset=DATASET, model="m", version="v", trainer="t", plans="nnUNetPlans", root=folder, preprocessed=preprocessed,
            configurations=(), folds=(), settings={},
        )  # fmt: skip
        ours, stock = folder / "ours", folder / "stock"
        shutil.copytree(ours, stock)
        reference = compare.Reference(trained, context(workspace))
        summary = reference.summarise(cases, ours)
        candidate = compare.Candidate(name="x", configurations=(), folder=ours, cases=tuple(cases), summary=summary)
        result = postprocessing.determine(candidate, reference, context(workspace))
        determine_postprocessing(str(stock), str(preprocessed / "gt_segmentations"), plans, reference.dataset_json, num_processes=1)
        names = [f"{case}.nii.gz" for case in cases]
        found.append(
            {
                "ours": read_json(ours / "postprocessing.json"),
                "stock": read_json(stock / "postprocessing.json"),
                "steps": list(result.steps),
                "declined": list(result.declined),
                "same_files": [
                    (ours / "postprocessed" / name).read_bytes() == (stock / "postprocessed" / name).read_bytes() for name in names
                ],
                "same_pickle": (ours / "postprocessing.pkl").stat().st_size > 0 and _pickles_agree(ours, stock),
            }
        )
    return found


def _pickles_agree(ours: Path, stock: Path) -> bool:
    import pickle

    left, right = (pickle.loads((folder / "postprocessing.pkl").read_bytes()) for folder in (ours, stock))
    return bool(left[0] == right[0] and left[1] == right[1])


def _made_up(folder: Path, plans: dict[str, Any], trial: dict[str, Any]) -> tuple[Path, list[str]]:
    """References of nested boxes; predictions of the same with islands of some labels, so that some steps help and some harm."""
    import numpy as np
    import SimpleITK

    rng = np.random.default_rng(trial["seed"])
    preprocessed = folder / "preprocessed"
    for path in (preprocessed / "gt_segmentations", folder / "ours"):
        path.mkdir(parents=True)
    write_json(preprocessed / "nnUNetPlans.json", plans)
    description = {"channel_names": {"0": "MRI"}, "labels": trial["labels"], "numTraining": 3, "file_ending": ".nii.gz"}
    if "order" in trial:
        description["regions_class_order"] = trial["order"]
    write_json(preprocessed / "dataset.json", description)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(preprocessed / ("nnUNetPlans.json" if name == "plans.json" else name), folder / "ours" / name)
    cases = [f"case_{number}" for number in range(3)]
    for case in cases:
        truth = np.zeros((12, 16, 16), dtype=np.uint8)
        if trial.get("inner_island"):
            truth[1:11, 1:15, 1:15] = 1
            truth[1:11, 1:15, 2:15] = 2
            truth[1:11, 1:15, 2:11] = 3
        else:
            truth[2:8, 2:8, 2:8] = 1
            truth[3:7, 8:13, 3:7] = 2
        prediction = truth.copy()
        if trial.get("inner_island"):  # of label 3 in the middle of label 2
            prediction[5:7, 6:8, 13:14] = 3
        for label in () if trial.get("inner_island") else (1, 2):
            for _ in range(int(rng.integers(0, 4))):  # islands: half of them are in the reference too
                corner = rng.integers(0, (9, 13, 13))
                island = tuple(slice(int(start), int(start) + int(rng.integers(1, 3))) for start in corner)
                prediction[island] = label
                if rng.random() < trial["true_islands"]:
                    truth[island] = label
        for array, target in ((truth, preprocessed / "gt_segmentations"), (prediction, folder / "ours")):
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(target / f"{case}.nii.gz"))
    return preprocessed, cases
