"""Makes selected models with random weights, in nnU-Net's layout with a card, for all tests except those of Dice."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from devtools.testbed.preprocessing import DATASET, register, result_of, start
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.steps.results import PreprocessResult
from nnunet_jobs.contract.storage.files import repoint, sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.model import selection_hash

TRAINER, PLANS = "nnUNetTrainer", "nnUNetPlans"
TINY = {"features_per_stage": [4, 8, 16], "n_conv_per_stage": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1]}
CONFIGURATIONS = {
    "2d_tiny": {"inherits_from": "2d", "batch_size": 2, "architecture": {"arch_kwargs": TINY}},
    "3d_tiny": {"inherits_from": "3d_fullres", "batch_size": 2, "architecture": {"arch_kwargs": TINY}},
}


def preprocessed(workspace: Workspace, source: Path, cases: Sequence[str], holdout: Sequence[str], **dataset_json: Any) -> Path:
    """Register and preprocess, and return the version's dataset folder."""
    register(workspace, source, cases, holdout=holdout, **dataset_json)
    fields: dict[str, Any] = {"configurations": list(CONFIGURATIONS), "custom_configurations": CONFIGURATIONS, "folds": 2}
    result = PreprocessResult.from_json(result_of(start(workspace, **fields)))
    return workspace.preprocessed_root(result.version) / DATASET


def save_random_folds(
    workspace: Workspace,
    version: Path,
    *,
    model: str,
    folds: Sequence[int],
    configurations: Sequence[str] = tuple(CONFIGURATIONS),
    without_mirroring: Sequence[str] = (),
) -> Path:
    """Write final checkpoints with random weights for every configuration and fold, with nnU-Net's own trainer.

    ``without_mirroring`` names configurations whose checkpoints forbid mirroring, as after a training without it.
    """
    import torch

    root = workspace.model_root(model)
    os.environ.update(workspace.nnunet_environment(version=version.parent.name, model=model))
    import nnunetv2.paths
    from nnunetv2.run.run_training import get_trainer_from_args

    assert Path(str(nnunetv2.paths.nnUNet_results)) == root, "nnunetv2 reads its environment once a process"
    for configuration in configurations:
        for fold in folds:
            torch.manual_seed(fold + 10 * len(configuration) + ord(configuration[0]))
            trainer = get_trainer_from_args(DATASET, configuration, fold, TRAINER, PLANS, False, device=torch.device("cpu"))
            trainer.initialize()
            trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            if configuration in without_mirroring:
                trainer.inference_allowed_mirroring_axes = None
            folder = Path(trainer.output_folder)
            write_json(folder.parent / "plans.json", trainer.plans_manager.plans)
            write_json(folder.parent / "dataset.json", trainer.dataset_json)
            trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    return root / DATASET


def save_in_this_process(request: Mapping[str, Any]) -> None:
    """Do the same for one fold, with arguments as JSON."""
    save_random_folds(Workspace.from_json(request["workspace"]), Path(request["version"]), model="m1", folds=[0])


def write_card(
    root: Path, members: Mapping[str, Sequence[int]], *, postprocessing: Sequence[Mapping[str, Any]] = (), promote: Workspace | None = None
) -> dict[str, Any]:
    """Write the card of a model of these configurations and folds, and return it."""
    entries = [{"trainer": TRAINER, "plans": PLANS, "configuration": name, "folds": list(folds)} for name, folds in members.items()]
    files = {}
    for name, folds in members.items():
        folder = root / f"{TRAINER}__{PLANS}__{name}"
        for path in (folder / "plans.json", folder / "dataset.json", *(folder / f"fold_{fold}" / "checkpoint_final.pth" for fold in folds)):
            files[path.relative_to(root).as_posix()] = sha256_file(path)
    selection = {"members": entries, "postprocessing": list(postprocessing)}
    card = {"schema": 1, "dataset": DATASET, "model": root.parent.name, "selection": selection, "files": files}
    card["hash"] = selection_hash(selection, files)
    write_json(root / "model.json", card)
    if promote is not None:
        repoint(promote.champion_link(DATASET), root)
    return card


def job_dir(workspace: Workspace, name: str = "predict-00000000") -> JobDir:
    """Return an empty job folder, for steps that run in the test's own process."""
    folder = Path(workspace.jobs) / name
    folder.mkdir(parents=True, exist_ok=True)
    return JobDir(folder)


def segmentations(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a folder's segmentations by file name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}
