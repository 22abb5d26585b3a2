"""Plans that no training can use are refused while they are made: lines, networks without stages, patches that cannot be halved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pytest

from devtools.testbed.preprocessing import DATASET, preprocess, write_manifest
from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.preprocessing.planning import with_custom, with_previous_stages
from nnunet_jobs.preprocessing.soundness import require_trainable

LABELS = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}


def plans(**changes: Any) -> dict[str, Any]:
    """Of a 2D and a low resolution configuration with three stages each."""

    def configuration(dims: int) -> dict[str, Any]:
        arguments = {"n_stages": 3, "features_per_stage": [4, 8, 8], "strides": [[1] * dims, [2] * dims, [2] * dims]}
        return {
            "data_identifier": f"nnUNetPlans_{dims}d",
            "patch_size": [32] * dims,
            "architecture": {"network_class_name": "a.PlainConvUNet", "arch_kwargs": arguments},
        }

    flat = {**configuration(2), **changes}
    low = {**configuration(3), "next_stage": "3d_cascade"}
    high = {"inherits_from": "3d_lowres", "previous_stage": "3d_lowres", "next_stage": None}
    return {"plans_name": "nnUNetPlans", "configurations": {"2d": flat, "3d_lowres": low, "3d_cascade": high}}


def judge(custom: dict[str, Any], *names: str, **changes: Any) -> None:
    complete = with_custom(plans(**changes), custom)
    require_trainable(complete, with_previous_stages(complete, names or list(custom)), custom=custom)


def arguments(**values: Any) -> dict[str, Any]:
    return {"x": {"inherits_from": "2d", "architecture": {"arch_kwargs": values}}}


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ({"x": {"inherits_from": "2d", "patch_size": [1, 40]}}, r"'x'.*\[1, 40\] voxels are lines.*at least 4 voxels along each axis"),
        ({"x": {"inherits_from": "2d", "patch_size": [40, 3]}}, r"are lines"),
        ({"x": {"inherits_from": "3d_lowres", "patch_size": [1, 1, 40]}}, r"no two axes to look along; correct patch_size"),
        ({"x": {"inherits_from": "2d", "patch_size": [30, 32]}}, r"multiple of \[4, 4\]; set patch_size to \[32, 32\]"),
        ({"x": {"inherits_from": "2d", "patch_size": [4, 4]}}, r"single voxel in the last stage"),
        ({"x": {"inherits_from": "2d", "patch_size": [32, 32, 32]}}, r"has 3 axes, and its network 2"),
        (arguments(features_per_stage=[4]), r"has 1 stage.*give architecture.arch_kwargs 3 stages or more"),
        (arguments(n_stages=4), r"features_per_stage has 3 values for 4 stages"),
        (arguments(strides=[[1, 1], [2, 2]]), r"strides has 2 values for 3 stages"),
        ({"x": {"inherits_from": "2d", "previous_stage": "3d_lowres"}}, r"'3d_lowres' leaves no predictions for it.*next_stage='x'"),
        ({"x": {"inherits_from": "2d", "next_stage": "y"}}, r"'y' is not in plans"),
        (
            {name: {"inherits_from": "2d", "previous_stage": other, "next_stage": other} for name, other in ("xy", "yx")},
            r"previous_stage goes in a circle \(x -> y -> x\)",
        ),
    ],
)
def test_a_configuration_that_no_training_can_use_is_refused_with_its_fix(custom: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        judge(custom, next(iter(custom)))


def test_what_the_planner_had_to_make_of_the_images_is_the_fault_of_the_images() -> None:
    with pytest.raises(DataError, match=r"lines, not slices.*write single slices as images with two axes"):
        judge({}, "2d", patch_size=[1, 40])
    with pytest.raises(DataError, match=r"pad images and labels to 16 voxels or more along two axes"):
        judge(arguments(features_per_stage=[4, 8, 8]), "2d", **arguments_of_one_stage())


def arguments_of_one_stage() -> dict[str, Any]:
    return {"architecture": {"network_class_name": "a.PlainConvUNet", "arch_kwargs": {"n_stages": 1, "strides": [[1, 1]]}}}


def test_usual_plans_few_stages_and_other_networks_pass(caplog: pytest.LogCaptureFixture) -> None:
    judge({}, "2d", "3d_cascade")
    assert not caplog.records
    judge({"other": {"inherits_from": "2d", "patch_size": [30, 30], "architecture": {"network_class_name": "my.Transformer"}}})
    judge(arguments(features_per_stage=[4, 8]))
    assert "train with nnUNetTrainerNoDeepSupervision" in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_slices_that_are_cut_into_lines_publish_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels wider than the slice is thick: nnU-Net's planner cuts across the slice."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")
    raw = workspace.raw_dataset(DATASET)
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    label = np.zeros((40, 32, 1), np.uint8)
    label[10:20, 8:16] = 1
    affine = np.diag([1.5, 1.5, 1.0, 1.0])
    for number in range(2):
        noise = np.random.default_rng(number).normal(100, 10, label.shape).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(noise, affine), raw / "imagesTr" / f"c{number}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), raw / "labelsTr" / f"c{number}.nii.gz")
    write_manifest(raw, LABELS, groups={})
    with pytest.raises(DataError, match=r"\[1, 40\] voxels are lines"):
        preprocess(workspace, configurations=["2d"], folds=2)
    assert workspace.current_version(DATASET) is None
    assert not [path for path in (Path(workspace.preprocessed) / ".versions").iterdir() if not path.name.startswith(".")]
