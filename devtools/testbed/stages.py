"""Makes small stages of a cascade, 2 mm and 1 mm, with random weights in nnU-Net's layout, for tests except of Dice."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from devtools.testbed.prediction import PLANS, TRAINER
from nnunet_jobs.contract.storage.files import sha256_file, write_json

DATASET = "Dataset007_Cascade"
DESCRIPTION = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "head": 1, "tail": 2}, "numTraining": 4, "file_ending": ".nii.gz"}
LOW, FULL = "3d_lowres", "3d_cascade_fullres"


def plans() -> dict[str, Any]:
    """Return plans of two small stages, 2 mm and 1 mm."""
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
    """Write one fold of random weights in nnU-Net's layout, and return the sha256 by path."""
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


def stage_of_labels(labels: dict[str, Any], order: list[int] | None, spacing: tuple[float, ...]) -> Any:
    """Return the part of a stage that export uses, made of nnU-Net's own classes."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    name = "resample_data_or_seg_to_shape"
    resample = partial(resample_data_or_seg_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None)
    return SimpleNamespace(
        plans_manager=SimpleNamespace(plans={}, transpose_forward=[0, 1, 2], transpose_backward=[2, 0, 1]),
        configuration_manager=SimpleNamespace(
            spacing=list(spacing), configuration={"resampling_fn_probabilities": name}, resampling_fn_probabilities=resample
        ),
        label_manager=LabelManager(labels, order),
    )
