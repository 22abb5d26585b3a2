"""Checks names of configurations and custom entries of the plans before there are any plans."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from nnunet_jobs.contract.failure import ConfigError

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
STOCK_PLANNERS = (
    "ExperimentPlanner",
    "ResEncUNetPlanner",
    "nnUNetPlannerResEncM",
    "nnUNetPlannerResEncL",
    "nnUNetPlannerResEncXL",
)
"""nnU-Net's planners whose plans have only configurations of these names."""
DATA_FIELDS = (
    "spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name",
    "resampling_fn_data", "resampling_fn_data_kwargs", "resampling_fn_seg", "resampling_fn_seg_kwargs",
)  # fmt: skip
"""Fields of a configuration that change the preprocessed arrays."""
_OTHER_FIELDS = (
    "inherits_from", "data_identifier", "batch_size", "patch_size", "median_image_size_in_voxels", "architecture", "batch_dice",
    "next_stage", "previous_stage", "resampling_fn_probabilities", "resampling_fn_probabilities_kwargs",
)  # fmt: skip


def check_custom(custom: Mapping[str, Any], own: Collection[str] | None) -> None:
    """Check custom configurations: their form, their fields, and what they inherit from.

    Args:
        custom: Maps a name to its entry.
        own: Names of the planner's configurations; None if they are not known.

    Raises:
        ConfigError: An entry cannot be used; the message names it and the fix.
    """
    known = None if own is None else {*own, *custom}
    for name, entry in custom.items():
        where = f"custom_configurations[{name!r}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(field=where, value=entry, problem="must be a mapping such as {'inherits_from': '2d', 'batch_size': 16}")
        for field in entry:
            if field not in (*DATA_FIELDS, *_OTHER_FIELDS):
                near = difflib.get_close_matches(str(field), (*DATA_FIELDS, *_OTHER_FIELDS), n=1)
                raise ConfigError(field=where, problem=f"unknown field {field!r}", fix=f"did you mean {near[0]!r}?" if near else None)
        parent = entry.get("inherits_from")
        if parent is None or (known is not None and parent not in known):
            names = "one of the plans" if known is None else f"one of {', '.join(sorted(known - {name}))}"
            raise ConfigError(field=where, problem=f"inherits_from={parent!r} is not a configuration", fix=f"name {names}")
    for name in custom:
        visited = [name]
        while (parent := custom.get(visited[-1], {}).get("inherits_from")) is not None:
            visited.append(parent)
            if visited.count(parent) > 1:
                raise ConfigError(field="custom_configurations", problem=f"{' -> '.join(visited)} inherit from each other")


def check_names(names: Collection[str], known: Collection[str]) -> None:
    """Check the names of configurations to train.

    Raises:
        ConfigError: A name is repeated or not known.
    """
    for name in names:
        problem, fix = None, ""
        if list(names).count(name) > 1:
            problem, fix = f"{name!r} is named twice", "name each once"
        elif known and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}; add it to custom_configurations"
            problem = f"{name!r} is not among the plans' configurations"
        if problem:
            raise ConfigError(field="configurations", value=list(names), problem=problem, fix=fix)
