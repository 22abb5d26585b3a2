"""Makes plans by any of nnU-Net's planners, adds custom configurations, and keeps plans while they fit the data."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.configurations import DATA_FIELDS, check_custom
from nnunet_jobs.contract.storage.files import content_hash

# Plans are kept while the data stays this close to what they were made from.
SPACING_TOLERANCE = 0.05  # relative move of the median spacing of an axis: beyond, resampling would blur or enlarge most cases
SHAPE_TOLERANCE = 0.20  # relative move of the median size of an axis in voxels: patch size and number of poolings follow it
INTENSITY_TOLERANCE = 0.10  # CT only: moves of mean and percentiles in standard deviations, and of the standard deviation itself
MASK_THRESHOLD = 0.75  # nnU-Net normalises within the nonzero mask when cropping removes more than a quarter of the voxels
# These normalisations use only the case; any other (CT, or an unknown one) also uses the dataset's intensities.
CASE_NORMALIZATIONS = frozenset({"ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"})
_PER_STAGE = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder")


def nnunet_version() -> str:
    """Return the installed version of nnU-Net, without importing it."""
    return importlib.metadata.version("nnunetv2")


def make_plans(
    *,
    folder: Path,
    dataset: str,
    dataset_json: Mapping[str, Any],
    cases: Mapping[str, tuple[Sequence[Path], Path]],
    fingerprint: Mapping[str, Any],
    planner: str,
    gpu_memory_gb: float | None,
    plans: str | None,
) -> dict[str, Any]:
    """Run a planner on exactly these cases and return its plans.

    The planner gets a separate raw folder, in which ``dataset.json`` lists the cases with their paths. So it plans for the
    manifest's training cases, ignores other files in ``imagesTr``, and needs no process pool to list them.

    Args:
        folder: An empty scratch folder.
        cases: Maps a case to its images and label.
        planner: Class name, looked up as nnU-Net does.
        gpu_memory_gb: The planner's target in GB; its own default if None.
        plans: Name of the plans; the planner's own if None.

    Raises:
        ConfigError: There is no such planner.
    """
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    root = str(Path(nnunetv2.__path__[0]) / "experiment_planning")
    found = recursive_find_python_class(root, planner, current_module="nnunetv2.experiment_planning")
    if found is None or not hasattr(found, "plan_experiment"):
        raise ConfigError(
            field="planner",
            value=planner,
            problem=f"nnU-Net {nnunet_version()} has no experiment planner of this name, such as ExperimentPlanner",
        )
    raw, preprocessed = folder / "raw" / dataset, folder / "preprocessed" / dataset
    raw.mkdir(parents=True)
    preprocessed.mkdir(parents=True)
    listing = {case: {"images": [str(path) for path in images], "label": str(label)} for case, (images, label) in cases.items()}
    (raw / "dataset.json").write_text(json.dumps({**dataset_json, "numTraining": len(cases), "dataset": listing}))
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint, sort_keys=True))  # its order is the plans'
    options: dict[str, Any] = {}
    if plans is not None:
        options["plans_name"] = plans
    if gpu_memory_gb is not None:
        options["gpu_memory_target_in_gb"] = gpu_memory_gb
    before = {name: os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_n_proc_DA")}
    # nnU-Net reads these at each use. It sets torch's threads to nnUNet_n_proc_DA while planning, and 0 crashes it.
    os.environ.update(nnUNet_raw=str(raw.parent), nnUNet_preprocessed=str(preprocessed.parent), nnUNet_n_proc_DA="1")
    try:
        made = found(dataset, **options)
        made.plan_experiment()
        result: dict[str, Any] = json.loads((preprocessed / f"{made.plans_identifier}.json").read_bytes())
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)
    return result


# --- custom configurations --------------------------------------------------------------------------------------------
def with_custom(plans: Mapping[str, Any], custom: Mapping[str, Any]) -> dict[str, Any]:
    """Add custom configurations to plans, complete enough for every stock nnU-Net command.

    A custom ``architecture`` may be partial: it is completed from the parent's, and per-stage lists that are not given are cut
    to the new number of stages. A configuration whose arrays differ from its parent's gets a new data identifier.

    Raises:
        ConfigError: A name is the planner's own, a parent is unknown or circular, a field is unknown, or a data
            identifier is shared by configurations with different arrays.
    """
    result = deepcopy(dict(plans))
    own = set(result["configurations"])
    for name, entry in custom.items():
        if name in own:
            raise ConfigError(
                field=f"custom_configurations[{name!r}]",
                problem="the planner makes a configuration of this name",
                fix="choose another name and inherit from it",
            )
        result["configurations"][name] = deepcopy(entry)
    check_custom(custom, own)
    for name in custom:
        _complete(result, name)
    _check_identifiers(result)
    return result


def resolve(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Return a configuration with everything it inherits, as nnU-Net's PlansManager resolves it.

    Raises:
        ConfigError: The plans have no such configuration; the message names those they have.
    """
    known = plans["configurations"]
    if configuration not in known:
        why = "; nnU-Net plans a low resolution only for images much larger than its patch" if configuration == "3d_lowres" else ""
        raise ConfigError(
            field="configurations", problem=f"{configuration!r} is not in plans {plans['plans_name']}{why}. Available: {', '.join(known)}"
        )
    entry = known[configuration]
    parent = entry.get("inherits_from")
    return {**(resolve(plans, parent) if parent else {}), **entry}


def _complete(plans: dict[str, Any], name: str) -> None:
    entry = plans["configurations"][name]
    parent = entry.get("inherits_from")
    if parent is None:
        return
    _complete(plans, parent)
    inherited = resolve(plans, parent)
    if "architecture" in entry:
        entry["architecture"] = _merge_architecture(inherited.get("architecture", {}), entry["architecture"])
    differs = any(field in entry and entry[field] != inherited.get(field) for field in DATA_FIELDS)
    if differs and "data_identifier" not in entry:
        entry["data_identifier"] = f"{plans['plans_name']}_{name}"


def _merge_architecture(parent: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**deepcopy(dict(parent)), **given}
    if given.get("network_class_name", parent.get("network_class_name")) != parent.get("network_class_name"):
        return merged  # another network has other arguments
    arguments = given.get("arch_kwargs", {})
    merged["arch_kwargs"] = {**deepcopy(parent.get("arch_kwargs", {})), **arguments}
    if "features_per_stage" in arguments and "n_stages" not in arguments:
        merged["arch_kwargs"]["n_stages"] = len(arguments["features_per_stage"])
    stages = merged["arch_kwargs"].get("n_stages")
    for field in _PER_STAGE:
        values = merged["arch_kwargs"].get(field)
        if stages and field not in arguments and isinstance(values, list | tuple):
            merged["arch_kwargs"][field] = list(values)[: stages - 1 if field.endswith("_decoder") else stages]
    return merged


def _check_identifiers(plans: Mapping[str, Any]) -> None:
    owner: dict[str, tuple[str, str]] = {}
    for name in plans["configurations"]:
        configuration = resolve(plans, name)
        identifier, arrays = configuration["data_identifier"], content_hash([configuration.get(field) for field in DATA_FIELDS])
        other = owner.setdefault(identifier, (name, arrays))
        if other[1] != arrays:
            raise ConfigError(
                field=f"custom_configurations[{name!r}]",
                problem=f"data_identifier={identifier!r} is that of {other[0]!r}, whose arrays differ",
                fix="give it another or leave it out",
            )


def with_previous_stages(plans: Mapping[str, Any], configurations: Sequence[str]) -> list[str]:
    """Return the configurations, each after the stages it needs (``3d_lowres`` for ``3d_cascade_fullres``), without repetitions.

    Raises:
        ConfigError: One is not in the plans, or stages need each other in a circle.
    """
    result: list[str] = []
    for name in configurations:
        chain = [name]
        while previous := resolve(plans, chain[-1]).get("previous_stage"):
            if previous in chain:
                raise ConfigError(
                    field="configuration",
                    value=name,
                    problem=f"previous_stage goes in a circle ({' -> '.join((*chain, previous))})",
                    fix="correct one",
                )
            chain.append(previous)
        for wanted in reversed(chain):
            for stage in _listed(resolve(plans, wanted).get("next_stage")):
                resolve(plans, stage)
            if wanted not in result:
                result.append(wanted)
    return result


def _listed(value: str | Sequence[str] | None) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or []


# --- what the arrays depend on ----------------------------------------------------------------------------------------
def data_hash(plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> str:
    """Return the hash of everything except the case's files that a configuration's preprocessed arrays depend on."""
    entry = resolve(plans, configuration)
    intensities = None
    if not set(entry["normalization_schemes"]) <= CASE_NORMALIZATIONS:
        intensities = plans["foreground_intensity_properties_per_channel"]
    return content_hash(
        {
            "nnunetv2": nnunet_version(),
            "reader": plans["image_reader_writer"],
            "transpose": plans["transpose_forward"],
            "label_manager": plans["label_manager"],
            "labels": list(dataset_json["labels"].items()),  # in order: foreground samples are drawn label after label
            "regions_class_order": dataset_json.get("regions_class_order"),
            "configuration": {field: entry.get(field) for field in DATA_FIELDS},
            "intensities": intensities,
        },
        length=32,
    )


# --- keep or plan again -----------------------------------------------------------------------------------------------
def basis(fingerprint: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return what plans were made from, small enough for ``version.json``; :func:`replan_reason` compares it."""
    return {
        "channel_names": dataset_json.get("channel_names"),
        "labels": dataset_json["labels"],
        "regions_class_order": dataset_json.get("regions_class_order"),
        "file_ending": dataset_json["file_ending"],
        "reader": dataset_json.get("overwrite_image_reader_writer"),
        "cases": len(fingerprint["spacings"]),
        "median_spacing": [float(value) for value in np.median(fingerprint["spacings"], 0)],
        "median_shape": [float(value) for value in np.median(fingerprint["shapes_after_crop"], 0)],
        "relative_size": float(fingerprint["median_relative_size_after_cropping"]),
        "intensities": fingerprint["foreground_intensity_properties_per_channel"],
        "nnunetv2": nnunet_version(),
    }


def replan_reason(old: Mapping[str, Any], new: Mapping[str, Any], *, uses_intensities: bool) -> str | None:
    """Say why plans made from ``old`` do not fit ``new`` (both from :func:`basis`); None while they fit.

    Args:
        old: Basis of the plans.
        new: Basis of the present data.
        uses_intensities: Whether a normalisation uses the dataset's intensities, as CT's does.
    """
    for field in ("channel_names", "labels", "regions_class_order", "file_ending", "reader", "nnunetv2"):
        if old.get(field) != new.get(field):
            return f"{field} changed"
    if len(old["median_spacing"]) != len(new["median_spacing"]):
        return "the number of dimensions changed"
    for field, tolerance in (("median_spacing", SPACING_TOLERANCE), ("median_shape", SHAPE_TOLERANCE)):
        for axis, (was, now) in enumerate(zip(old[field], new[field], strict=True)):
            if abs(now - was) > tolerance * was:
                return f"{field} of axis {axis} moved from {was:g} to {now:g}, more than {tolerance:.0%}"
    if (old["relative_size"] < MASK_THRESHOLD) != (new["relative_size"] < MASK_THRESHOLD):
        return f"cropping now leaves {new['relative_size']:.0%} of a case, was {old['relative_size']:.0%}: other normalisation mask"
    return _intensity_reason(old["intensities"], new["intensities"]) if uses_intensities else None


def _intensity_reason(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    for channel, was in old.items():
        now, scale = new[channel], max(float(was["std"]), 1e-8)
        for field in ("mean", "percentile_00_5", "percentile_99_5", "std"):
            if abs(now[field] - was[field]) > INTENSITY_TOLERANCE * scale:
                return (
                    f"intensity {field} of channel {channel} moved from {was[field]:g} to {now[field]:g}, "
                    f"more than {INTENSITY_TOLERANCE:g} standard deviations"
                )
    return None
