"""Refuses plans that cannot be trained when they are made, instead of a crash or a NaN loss hours later."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, DataError, JobError
from nnunet_jobs.preprocessing.planning import resolve

log = logging.getLogger(__name__)

SMALLEST_MAP = 4  # voxels along an edge of the last feature map that nnU-Net plans (UNet_featuremap_min_edge_length)
DEEP_STAGES = 3  # with fewer, deep supervision has one output, to which nnU-Net gives the weight 0 / 0
_PER_STAGE = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage")


def require_trainable(plans: Mapping[str, Any], configurations: Sequence[str], *, custom: Mapping[str, Any]) -> None:
    """Refuse configurations that no training can use.

    Args:
        plans: Complete plans.
        configurations: Configurations to preprocess.
        custom: The user's configurations; the others are the planner's.

    Raises:
        DataError: For these images, the planner made patches that are lines, or a network without a second stage.
        ConfigError: A user's configuration contradicts itself.
    """
    for name in configurations:
        entry = resolve(plans, name)
        problem = _patch_problem(entry) or _network_problem(entry)
        if problem is None:
            _warn_of_few_stages(name, entry)
        elif name in custom:
            raise ConfigError(field=f"custom_configurations[{name!r}]", problem=problem[0], fix=problem[2])
        else:
            raise _of_the_images(name, problem)
    _require_stages_agree(plans, configurations)


def _of_the_images(name: str, problem: tuple[str, str, str]) -> JobError:
    return DataError(f"configuration={name!r}: {problem[0]}; {problem[1]}")


def _patch_problem(entry: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return (problem, fix of the images, fix of the configuration), or None."""
    patch = [int(size) for size in entry["patch_size"]]
    if len(patch) == 2 and min(patch) < SMALLEST_MAP <= max(patch):
        return (
            f"its patches of {patch} voxels are lines, not slices: nnU-Net cuts volumes across the axis with the largest spacing",
            "write single slices as images with two axes (such as .png), give the slices a thickness larger than their pixels, or train "
            "3d_fullres where there are several slices",
            f"give patch_size at least {SMALLEST_MAP} voxels along each axis",
        )
    if sum(size > 1 for size in patch) < 2:
        return (
            f"its patches of {patch} voxels have no two axes to look along",
            "the images are too small or truncated: check their shapes",
            "correct patch_size",
        )
    return None


def _network_problem(entry: Mapping[str, Any]) -> tuple[str, str, str] | None:
    architecture = entry.get("architecture") or {}
    arguments = architecture.get("arch_kwargs") or {}
    stages, patch = arguments.get("n_stages"), [int(size) for size in entry["patch_size"]]
    if "unet" not in str(architecture.get("network_class_name", "")).lower() or not isinstance(stages, int):
        return None  # of other networks nothing is known here
    if stages < 2:
        least = SMALLEST_MAP << (DEEP_STAGES - 1)
        return (
            f"its network has {stages} stage(s), where a U-Net needs two at least and nnU-Net's usual training {DEEP_STAGES}",
            f"pad images and labels to {least} voxels or more along two axes",
            f"give architecture.arch_kwargs {DEEP_STAGES} stages or more",
        )
    for field in _PER_STAGE:
        values = arguments.get(field)
        if isinstance(values, list | tuple) and len(values) != stages:
            return (wrong := f"architecture.arch_kwargs.{field} has {len(values)} values for {stages} stages"), wrong, "give one a stage"
    strides = arguments.get("strides")
    if not isinstance(strides, list | tuple):
        return None
    steps = [[int(step)] * len(patch) if isinstance(step, int) else [int(axis) for axis in step] for step in strides]
    if any(len(step) != len(patch) for step in steps):
        return (wrong := f"patch_size={patch} has {len(patch)} axes, and its network {len(steps[0])}"), wrong, "give both the same axes"
    total = [math.prod(step[axis] for step in steps) for axis in range(len(patch))]
    if any(size % factor for size, factor in zip(patch, total, strict=True)):
        grown = [math.ceil(size / factor) * factor for size, factor in zip(patch, total, strict=True)]
        problem = f"patch_size={patch} cannot be halved as its strides ask: each axis must be a multiple of {total}"
        return (
            problem,
            f"set patch_size to {grown} in a configuration of your own",
            f"set patch_size to {grown}, or give fewer strides of 2",
        )
    if math.prod(size // factor for size, factor in zip(patch, total, strict=True)) < 2:
        problem = f"patch_size={patch} leaves a single voxel in the last stage, of which no norm can be taken"
        return problem, "pad the images", "give a larger patch_size, or fewer strides of 2"
    return None


def _warn_of_few_stages(name: str, entry: Mapping[str, Any]) -> None:
    stages = ((entry.get("architecture") or {}).get("arch_kwargs") or {}).get("n_stages")
    if isinstance(stages, int) and stages < DEEP_STAGES:
        log.warning(
            "configuration %s: its network has %d stages, and deep supervision needs %d; pad images and labels to %d voxels or more along "
            "two axes, or train with nnUNetTrainerNoDeepSupervision",
            name, stages, DEEP_STAGES, SMALLEST_MAP << (DEEP_STAGES - 1),
        )  # fmt: skip


def _require_stages_agree(plans: Mapping[str, Any], configurations: Sequence[str]) -> None:
    """Require a cascade's first stage to write predictions for it, or its training would wait for them forever.

    Raises:
        ConfigError: The stages do not name each other.
    """
    for name in configurations:
        previous = resolve(plans, name).get("previous_stage")
        if not previous:
            continue
        named = resolve(plans, previous).get("next_stage") or []
        if name not in ([named] if isinstance(named, str) else named):
            raise ConfigError(
                field="configuration",
                value=name,
                problem=f"previous_stage={previous!r} leaves no predictions for it (its next_stage is {named or None!r})",
                fix=(
                    f"describe a first stage of your own in custom_configurations with next_stage={name!r}, and name it as previous_stage"
                ),
            )
