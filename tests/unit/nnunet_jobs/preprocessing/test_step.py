"""The preprocessing step: nnU-Net's own arrays, computed once, found again by content."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from devtools.testbed.preprocessing import DATASET, TINY, differences, preprocess, register, result_of, start, stock, write_manifest
from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.storage.files import sha256_file
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.phantom import write_phantom
from nnunet_jobs.preprocessing import fingerprint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
CASES = [f"phantom_{number:03d}" for number in range(8)]
FEW = CASES[:6]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "stock" not in request.node.name:  # a hundred million draws are nnU-Net's number, and a second or two each time
        monkeypatch.setattr(fingerprint, "INTENSITIES_PER_DATASET", 1e6)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")  # the step sets them; this gives them back


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "source"
    write_phantom(folder, cases=len(CASES), seed=5)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Names, inodes and content of everything in a folder."""

    inodes: dict[str, int]
    hashes: dict[str, str]


def listing(root: Path) -> Listing:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return Listing(
        inodes={str(path.relative_to(root)): path.stat().st_ino for path in files},
        hashes={str(path.relative_to(root)): sha256_file(path) for path in files},
    )


@pytest.fixture
def first(workspace: Workspace, source: Path) -> Path:
    """Six cases preprocessed for 2d."""
    register(workspace, source, FEW)
    return Path(preprocess(workspace, configurations=["2d"])["datasets"][0]["path"])


def test_everything_equals_what_the_stock_command_makes(workspace: Workspace, source: Path, tmp_path: Path) -> None:
    register(workspace, source, FEW)
    stock(workspace, tmp_path / "stock", "-c", "2d", "3d_fullres", "-np", "2", "-npfp", "2")
    result = preprocess(workspace, configurations=["2d", "3d_fullres"])["datasets"][0]
    assert (result["computed"], result["linked"], result["already_done"]) == (12, 0, False)
    assert differences(Path(result["path"]), tmp_path / "stock" / DATASET) == []
    assert (Path(workspace.preprocessed) / DATASET).resolve() == Path(result["path"])


def test_the_splits_are_those_of_nnunet(first: Path) -> None:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    theirs = [{part: list(map(str, fold[part])) for part in ("train", "val")} for fold in generate_crossval_split(FEW)]
    assert json.loads((first / "splits_final.json").read_text()) == theirs


def test_done_work_is_found_without_importing_nnunet(workspace: Workspace, first: Path) -> None:
    result = result_of(start(workspace, configurations=["2d"]))
    assert result["datasets"][0]["already_done"]
    assert result["datasets"][0]["path"] == str(first)
    assert "nnunetv2" not in result["imported"]


def test_fault_37_new_cases_alone_are_computed_and_old_versions_stay_as_they_are(workspace: Workspace, source: Path, first: Path) -> None:
    before, old_splits = listing(first), json.loads((first / "splits_final.json").read_text())
    register(workspace, source, CASES)
    result = preprocess(workspace, configurations=["2d"])["datasets"][0]
    second = Path(result["path"])
    assert (result["computed"], result["linked"], result["replanned"]) == (2, 6, False)
    assert second != first
    after = listing(second)
    for case in FEW:
        for suffix in (".b2nd", "_seg.b2nd", ".pkl"):
            name = f"nnUNetPlans_2d/{case}{suffix}"
            assert after.inodes[name] == before.inodes[name], "linked, not copied"
    assert after.hashes["nnUNetPlans.json"] == before.hashes["nnUNetPlans.json"]
    assert listing(first) == before
    for old, new in zip(old_splits, json.loads((second / "splits_final.json").read_text()), strict=True):
        assert set(old["val"]) <= set(new["val"])
        assert set(new["train"]) | set(new["val"]) == set(CASES)
    assert len(json.loads((second / "dataset_fingerprint.json").read_text())["spacings"]) == 8


def test_a_changed_label_reaches_arrays_and_ground_truth(workspace: Workspace, source: Path, first: Path) -> None:
    raw = workspace.raw_dataset(DATASET)
    dataset_json = json.loads((raw / "dataset.json").read_text())
    label = raw / "labelsTr" / f"{FEW[0]}.nii.gz"
    label.unlink()
    _erase_one_voxel(source / "labelsTr" / label.name, label)
    os.utime(label, (1, 1))  # older than the copy: nnU-Net's own command would leave the ground truth stale
    write_manifest(raw, dataset_json, groups={})
    result = preprocess(workspace, configurations=["2d"])["datasets"][0]
    assert (result["computed"], result["linked"]) == (1, 5)
    truth = Path(result["path"]) / "gt_segmentations"
    assert sha256_file(truth / label.name) == sha256_file(label)
    assert sha256_file(truth / label.name) != sha256_file(first / "gt_segmentations" / label.name)


def _erase_one_voxel(source: Path, target: Path) -> None:
    import nibabel

    image = nibabel.load(source)
    data = np.asarray(image.dataobj).copy()
    data[tuple(np.argwhere(data)[0])] = 0
    nibabel.save(nibabel.Nifti1Image(data, image.affine, image.header), target)


def test_a_further_configuration_links_what_is_there(workspace: Workspace, first: Path) -> None:
    custom = {"2d_tiny": TINY, "coarse": {"inherits_from": "3d_fullres", "spacing": [2.0, 2.0, 2.0]}}
    result = preprocess(workspace, configurations=["2d", "2d_tiny", "coarse"], custom_configurations=custom)["datasets"][0]
    assert (result["computed"], result["linked"], result["replanned"]) == (6, 6, False)
    assert sorted(path.name for path in Path(result["path"]).iterdir() if path.is_dir()) == [
        "gt_segmentations",
        "nnUNetPlans_2d",
        "nnUNetPlans_coarse",
    ]


def test_other_labels_make_new_plans(workspace: Workspace, source: Path, first: Path) -> None:
    register(workspace, source, FEW, labels={"background": 0, "whole": [1, 2], "posterior": 2}, regions_class_order=[1, 2])
    with pytest.raises(ConfigError, match="replan='never': labels changed"):
        preprocess(workspace, configurations=["2d"], replan="never")
    result = preprocess(workspace, configurations=["2d"])["datasets"][0]
    assert (result["computed"], result["replanned"], result["reason"]) == (6, True, "labels changed")


def test_planner_and_memory_target_are_obeyed_and_replan_always_finds_the_same_version(workspace: Workspace, first: Path) -> None:
    again = preprocess(workspace, configurations=["2d"], replan="always")["datasets"][0]
    assert (again["path"], again["already_done"], again["reason"]) == (str(first), True, "requested by replan='always'")
    result = preprocess(workspace, configurations=["2d"], planner="nnUNetPlannerResEncM", gpu_memory_gb=1)["datasets"][0]
    assert result["plans"] == "nnUNetResEncUNetMPlans"
    assert result["linked"] == 6, "this planner's 2d arrays are the default planner's"
    assert workspace.current_version(DATASET) == result["version"]
    back = preprocess(workspace, configurations=["2d"])["datasets"][0]
    assert (back["path"], back["already_done"]) == (str(first), True)


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "stray"])
def test_a_damaged_version_is_made_whole_again(workspace: Workspace, first: Path, damage: str) -> None:
    victim = first / "nnUNetPlans_2d" / f"{FEW[2]}.b2nd"
    data = victim.read_bytes()
    if damage == "cut":
        victim.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        status = victim.stat()
        victim.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
        os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif damage == "missing":
        victim.unlink()
    else:
        (victim.parent / "notes.txt").write_text("stray files break training")
    result = preprocess(workspace, configurations=["2d"])["datasets"][0]
    assert (result["path"], result["already_done"]) == (str(first), False)
    assert result["computed"] == (0 if damage == "stray" else 1)
    assert preprocess(workspace, configurations=["2d"])["datasets"][0]["already_done"]
    assert not list((Path(workspace.preprocessed) / ".versions").glob(".*"))


def test_natural_images_in_two_dimensions(workspace: Workspace) -> None:
    from skimage import io

    raw = workspace.raw_dataset(DATASET)
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (raw / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(5):
        io.imsave(raw / "imagesTr" / f"cell_{number}_0000.png", rng.integers(1, 255, (70, 60, 3), dtype=np.uint8), check_contrast=False)
        label = np.zeros((70, 60), np.uint8)
        label[20:40, 15 : 30 + number] = 1
        io.imsave(raw / "labelsTr" / f"cell_{number}.png", label, check_contrast=False)
    description = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".png"}
    write_manifest(raw, description, groups={})
    result = preprocess(workspace, configurations=["2d"])["datasets"][0]
    assert result["computed"] == 5
    assert (Path(result["path"]) / "gt_segmentations" / "cell_0.png").is_file()
    with pytest.raises(ConfigError, match=r"'3d_fullres' is not in plans nnUNetPlans\. Available: 2d"):
        preprocess(workspace, configurations=["3d_fullres"])


def test_bad_settings_are_named_before_anything_is_visible(workspace: Workspace, source: Path) -> None:
    register(workspace, source, FEW)
    for values, message in (
        ({"configurations": ["3d_lowres"]}, "'3d_lowres' is not in plans"),
        ({"planner": "NoSuchPlanner"}, "planner='NoSuchPlanner'"),
        ({"folds": 7}, "folds=7: the dataset has 6 patients"),
        ({"custom_configurations": {"x": {"inherits_from": "9d"}}}, "inherits_from='9d'"),
    ):
        with pytest.raises(ConfigError, match=message):
            preprocess(workspace, **values)
    assert workspace.current_version(DATASET) is None
    assert list((Path(workspace.preprocessed) / ".versions").glob("[!.]*")) == []
    (Path(workspace.preprocessed) / DATASET).mkdir()
    with pytest.raises(ConfigError, match="is a folder, not a link"):
        preprocess(workspace)


def test_an_image_that_changed_since_registration_is_named(workspace: Workspace, source: Path) -> None:
    raw = register(workspace, source, FEW)
    image = raw / "imagesTr" / f"{FEW[3]}_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:-100])
    with pytest.raises(DataError, match=image.name):
        preprocess(workspace, configurations=["2d"])
    assert workspace.current_version(DATASET) is None


def test_holdout_cases_are_left_out_and_groups_stay_together(workspace: Workspace, source: Path) -> None:
    groups = {case: f"patient_{number // 2}" for number, case in enumerate(CASES)}
    register(workspace, source, CASES, holdout=CASES[6:], groups=groups)
    result = preprocess(workspace, configurations=["2d"], folds=3)["datasets"][0]
    assert result["cases"] == 6
    splits = json.loads((Path(result["path"]) / "splits_final.json").read_text())
    assert sorted(tuple(fold["val"]) for fold in splits) == [tuple(FEW[start : start + 2]) for start in (0, 2, 4)]
