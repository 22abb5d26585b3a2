"""A cascade: the low-resolution stage runs first and its segmentation is the second stage's input, as with the stock commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.files import sha256_file, write_json
from nnunet_jobs.contract.params import PredictParams
from nnunet_jobs.contract.workspace import Workspace
from nnunet_jobs.prediction.model import selection_hash
from nnunet_jobs.selection.commands import commands
from nnunet_jobs.steps.predict import run
from support.prediction import PLANS, TRAINER, job_dir

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

DATASET = "Dataset007_Cascade"
DESCRIPTION = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "head": 1, "tail": 2}, "numTraining": 4, "file_ending": ".nii.gz"}
LOW, FULL = "3d_lowres", "3d_cascade_fullres"


def plans() -> dict[str, Any]:
    """Plans of two small stages, 2 mm and 1 mm."""
    resample = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    low = {
        "data_identifier": "low", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": [16, 24, 16],
        "median_image_size_in_voxels": [18, 24, 20], "spacing": [2.0, 2.0, 2.0], "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False], "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resample,
        "resampling_fn_seg_kwargs": {**resample, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resample, "order": 1}, "batch_dice": False, "next_stage": FULL,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2, "features_per_stage": [4, 8], "conv_op": "torch.nn.modules.conv.Conv3d", "kernel_sizes": [[3, 3, 3]] * 2,
                "strides": [[1, 1, 1], [2, 2, 2]], "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }  # fmt: skip
    full = {
        "inherits_from": LOW, "data_identifier": "full", "patch_size": [32, 48, 32], "spacing": [1.0, 1.0, 1.0], "previous_stage": LOW,
        "next_stage": None,
    }  # fmt: skip
    return {
        "dataset_name": DATASET, "plans_name": PLANS, "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [36, 48, 40], "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2], "configurations": {LOW: low, FULL: full}, "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager", "foreground_intensity_properties_per_channel": {"0": {}},
    }  # fmt: skip


def save_stage(root: Path, configuration: str, *, seed: int) -> dict[str, str]:
    """One fold of random weights in stock layout; returns sha256 by path."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans())
    entry = manager.get_configuration(configuration)
    torch.manual_seed(seed)
    network = get_network_from_plans(
        entry.network_arch_class_name, entry.network_arch_init_kwargs, entry.network_arch_init_kwargs_req_import,
        determine_num_input_channels(manager, entry, DESCRIPTION), 3, allow_init=True, deep_supervision=False,
    )  # fmt: skip
    folder = root / f"{TRAINER}__{PLANS}__{configuration}"
    (folder / "fold_0").mkdir(parents=True)
    write_json(folder / "plans.json", plans())
    write_json(folder / "dataset.json", DESCRIPTION)
    torch.save(
        {
            "network_weights": network.state_dict(), "trainer_name": TRAINER, "init_args": {"configuration": configuration},
            "inference_allowed_mirroring_axes": (0, 1, 2), "current_epoch": 1,
        },
        folder / "fold_0" / "checkpoint_final.pth",
    )  # fmt: skip
    paths = (folder / "plans.json", folder / "dataset.json", folder / "fold_0" / "checkpoint_final.pth")
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in paths}


def test_a_cascade_gives_the_bytes_of_the_commands_in_its_card(workspace: Workspace, tmp_path: Path) -> None:
    import nibabel as nib

    from nnunet_jobs.dataset.phantom import phantom_case

    workspace.raw_dataset(DATASET).mkdir(parents=True)
    images = tmp_path / "images"
    images.mkdir()
    voxels, _, affine = phantom_case(5, 0)
    nib.save(nib.Nifti1Image(voxels, affine), images / "case_0000.nii.gz")
    root = workspace.model_root("m1") / DATASET
    files = {**save_stage(root, LOW, seed=1), **save_stage(root, FULL, seed=2)}
    stage = {"trainer": TRAINER, "plans": PLANS, "folds": [0]}
    member = {**stage, "configuration": FULL, "previous_stage": {**stage, "configuration": LOW}}
    selection = {"members": [member], "postprocessing": []}
    card = {"schema": 1, "dataset": DATASET, "model": "m1", "selection": selection, "files": files}
    write_json(root / "model.json", {**card, "hash": selection_hash(selection, files)})

    places = {"{input}": str(images), "{output}": str(tmp_path / "stock"), "{work}": str(tmp_path / "between"), "{model}": str(root)}
    listed = commands(DATASET, selection)
    assert [argv[0] for argv in listed] == ["nnUNetv2_predict"] * 2
    for argv in listed:
        for place, path in places.items():
            argv = [part.replace(place, path) for part in argv]
        done = subprocess.run(
            [str(Path(sys.executable).with_name(argv[0])), *argv[1:], "-device", "cpu", "-npp", "1", "-nps", "1"],
            env={**os.environ, **workspace.nnunet_environment(model="m1")},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    output = Path(workspace.output_roots[0]) / "ours"
    params = PredictParams(dataset=DATASET, cases=str(images), output=str(output), model="m1")
    result = run(params, StepContext(workspace=workspace, job=job_dir(workspace), cpus=2))
    assert (result["predicted"], result["failed"]) == (1, [])
    assert (output / "case.nii.gz").read_bytes() == (tmp_path / "stock" / "case.nii.gz").read_bytes()
    low = nib.load(tmp_path / "between" / "previous_stage" / "case.nii.gz")
    assert len(set(low.get_fdata().ravel())) > 1, "the first stage must have found something for this to mean anything"
