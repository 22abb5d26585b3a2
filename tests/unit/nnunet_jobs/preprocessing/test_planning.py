"""Plans: custom configurations are checked and completed, old plans are kept while they fit."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.preprocessing import planning
from nnunet_jobs.preprocessing.planning import data_hash, replan_reason, resolve, with_custom, with_previous_stages

JSON = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}


def plans() -> dict[str, Any]:
    def configuration(dims: int, name: str) -> dict[str, Any]:
        return {
            "data_identifier": f"nnUNetPlans_{name}",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 12,
            "patch_size": [56] * dims,
            "spacing": [1.0] * dims,
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {"order": 3},
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_seg_kwargs": {"order": 1},
            "architecture": {
                "network_class_name": "PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": 5,
                    "features_per_stage": [32, 64, 128, 256, 512],
                    "kernel_sizes": [[3] * dims] * 5,
                    "strides": [[1] * dims, *[[2] * dims] * 4],
                    "n_conv_per_stage": [2] * 5,
                    "n_conv_per_stage_decoder": [2] * 4,
                },
            },
        }

    return {
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
        "configurations": {
            "2d": configuration(2, "2d"),
            "3d_lowres": {**configuration(3, "3d_lowres"), "spacing": [2.0] * 3, "next_stage": "3d_cascade_fullres"},
            "3d_fullres": configuration(3, "3d_fullres"),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


def test_a_partial_architecture_is_completed_and_cut_to_its_stages() -> None:
    tiny = {"inherits_from": "2d", "batch_size": 16, "architecture": {"arch_kwargs": {"features_per_stage": [16, 32, 64, 128]}}}
    made = with_custom(plans(), {"2d_tiny": tiny})["configurations"]["2d_tiny"]
    assert made["architecture"] == {
        "network_class_name": "PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 4,
            "features_per_stage": [16, 32, 64, 128],
            "kernel_sizes": [[3, 3]] * 4,
            "strides": [[1, 1], *[[2, 2]] * 3],
            "n_conv_per_stage": [2] * 4,
            "n_conv_per_stage_decoder": [2] * 3,
        },
    }
    assert "data_identifier" not in made, "the arrays are those of 2d"
    assert plans()["configurations"].keys() == with_custom(plans(), {})["configurations"].keys()


def test_other_arrays_get_a_data_identifier_of_their_own() -> None:
    made = with_custom(
        plans(), {"fine": {"inherits_from": "3d_fullres", "spacing": [0.5] * 3}, "finer": {"inherits_from": "fine", "batch_size": 2}}
    )
    assert resolve(made, "fine")["data_identifier"] == "nnUNetPlans_fine"
    assert resolve(made, "finer")["data_identifier"] == "nnUNetPlans_fine"
    assert data_hash(made, "fine", JSON) != data_hash(made, "3d_fullres", JSON)
    assert data_hash(made, "finer", JSON) == data_hash(made, "fine", JSON)


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ({"x": {"inherits_from": "4d"}}, r"inherits_from='4d' is not a configuration; name one of 2d, 3d_cascade"),
        ({"x": {"batch_size": 2}}, r"inherits_from=None"),
        ({"2d": {"inherits_from": "3d_fullres"}}, r"the planner makes a configuration of this name"),
        ({"x": {"inherits_from": "2d", "batchsize": 2}}, r"unknown field 'batchsize'; did you mean 'batch_size'"),
        ({"x": "2d"}, r"must be a mapping"),
        ({"x": {"inherits_from": "y"}, "y": {"inherits_from": "x"}}, r"x -> y -> x inherit from each other"),
        (
            {"x": {"inherits_from": "2d", "spacing": [2.0, 2.0], "data_identifier": "nnUNetPlans_2d"}},
            r"data_identifier='nnUNetPlans_2d' is that of '2d', whose arrays differ",
        ),
    ],
)
def test_a_wrong_custom_configuration_is_named_with_its_mend(custom: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_custom(plans(), custom)


def test_a_missing_configuration_names_those_that_are_there() -> None:
    small = plans()
    del small["configurations"]["3d_lowres"]
    with pytest.raises(ConfigError, match=r"'3d_lowres' is not in plans nnUNetPlans; nnU-Net plans a low .* Available: 2d, 3d_fullres"):
        resolve(small, "3d_lowres")


def test_a_cascade_brings_its_first_stage() -> None:
    assert with_previous_stages(plans(), ["3d_cascade_fullres", "2d"]) == ["3d_lowres", "3d_cascade_fullres", "2d"]
    assert resolve(plans(), "3d_cascade_fullres")["data_identifier"] == "nnUNetPlans_3d_fullres"


def test_arrays_depend_on_what_changes_them_and_on_nothing_else() -> None:
    base = data_hash(plans(), "2d", JSON)
    for field, value in (("batch_size", 3), ("patch_size", [64, 64])):
        other = plans()
        other["configurations"]["2d"][field] = value
        assert data_hash(other, "2d", JSON) == base
    for field, value in (("spacing", [1.0, 2.0]), ("use_mask_for_norm", [True]), ("resampling_fn_seg_kwargs", {"order": 0})):
        other = plans()
        other["configurations"]["2d"][field] = value
        assert data_hash(other, "2d", JSON) != base
    assert data_hash(plans(), "2d", {**JSON, "labels": {"background": 0, "a": 1, "b": 2}}) != base
    intensities = plans()
    intensities["foreground_intensity_properties_per_channel"] = {"0": {"mean": 2.0}}
    assert data_hash(intensities, "2d", JSON) == base
    for changed in (intensities, base_ct := plans()):
        changed["configurations"]["2d"]["normalization_schemes"] = ["CTNormalization"]
    assert data_hash(intensities, "2d", JSON) != data_hash(base_ct, "2d", JSON)


def basis(**changes: Any) -> dict[str, Any]:
    intensities = {"mean": 100.0, "std": 50.0, "percentile_00_5": -20.0, "percentile_99_5": 300.0}
    fingerprint = {
        "spacings": [[3.0, 0.8, 0.8]] * 5,
        "shapes_after_crop": [[40, 200, 200]] * 5,
        "median_relative_size_after_cropping": 0.9,
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }
    return {**planning.basis(fingerprint, JSON), **deepcopy(changes)}


def moved(**changes: float) -> dict[str, Any]:
    return {"0": {**basis()["intensities"]["0"], **changes}}


@pytest.mark.parametrize(
    ("change", "ct", "reason"),
    [
        ({}, True, None),
        ({"median_spacing": [3.1, 0.8, 0.8]}, False, None),
        ({"median_spacing": [3.2, 0.8, 0.8]}, False, "median_spacing of axis 0 moved from 3 to 3.2, more than 5%"),
        ({"median_shape": [40.0, 170.0, 200.0]}, False, None),
        ({"median_shape": [40.0, 150.0, 200.0]}, False, "median_shape of axis 1"),
        ({"relative_size": 0.7}, False, "other normalisation mask"),
        ({"labels": {"background": 0, "b": 1}}, False, "labels changed"),
        ({"channel_names": {"0": "CT"}}, False, "channel_names changed"),
        ({"nnunetv2": "3.0"}, False, "nnunetv2 changed"),
        ({"intensities": moved(mean=104.9)}, True, None),
        ({"intensities": moved(mean=106.0)}, True, "intensity mean of channel 0 moved from 100 to 106"),
        ({"intensities": moved(std=56.0)}, True, "intensity std"),
        ({"intensities": moved(percentile_99_5=310.0)}, True, "intensity percentile_99_5"),
        ({"intensities": moved(mean=400.0)}, False, None),
    ],
)
def test_plans_are_kept_until_the_data_has_moved(change: dict[str, Any], ct: bool, reason: str | None) -> None:
    found = replan_reason(basis(), basis(**change), uses_intensities=ct)
    assert (found is None) if reason is None else (found is not None and reason in found)
