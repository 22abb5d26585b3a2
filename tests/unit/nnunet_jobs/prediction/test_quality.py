"""What is flagged when nobody knows the truth, and what is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from devtools.testbed.prediction import job_dir
from devtools.testbed.serving import make_image, make_workspace
from devtools.testbed.stages import DATASET, LOW, save_stage
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.storage.files import read_json, sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.agreement import FoldAgreement
from nnunet_jobs.prediction.model import resolve_model, selection_hash
from nnunet_jobs.prediction.preview import Preview
from nnunet_jobs.prediction.quality import Expected, label_range
from support.batches import predict

LABELS = {"liver": {"present": 40, "ml": {"low": 900.0, "median": 1400.0, "high": 2200.0}}, "lesion": {"present": 12, "ml": None}}
CT = {"0": {"percentile_00_5": -100.0, "percentile_99_5": 200.0, "median": 60.0}}
SPACING = {"low": [1.0, 0.7, 0.7], "high": [5.0, 0.9, 0.9]}


def expected(**fields: Any) -> Expected:
    return Expected(**{"cases": 40, "labels": LABELS, "spacing": SPACING, "intensities": CT, "ct": frozenset({0}), **fields})


def flags(known: Expected, *, image: np.ndarray | None = None, **fields: Any) -> dict[str, dict[str, Any]]:
    segmentation = np.zeros((8, 20, 20), np.uint8)
    segmentation[2:6, 5:15, 5:15] = 1
    usual = {"voxels": {"liver": 400, "lesion": 0}, "volumes_ml": {"liver": 1500.0, "lesion": 0.0}, "spacing": [2.0, 0.8, 0.8]}
    preview = Preview.of(np.full((1, 8, 20, 20), 60.0, np.float32) if image is None else image)
    found = known.flags(**{**usual, "preview": preview, "segmentation": segmentation, "agreement": {"liver": 0.95}, **fields})
    return {flag["code"]: flag for flag in found}


def test_a_usual_case_has_no_flags() -> None:
    assert flags(expected()) == {}


def test_nothing_at_all_is_empty_and_so_is_a_label_that_all_others_have() -> None:
    assert flags(expected(), voxels={"liver": 0, "lesion": 0})["empty"]["message"] == "nothing was found in it"
    missing = flags(expected(), voxels={"liver": 0, "lesion": 9})["empty"]
    assert (missing["message"], missing["expected"]) == ("liver was not found", "in 40 of 40 training cases")
    assert flags(expected(cases=0, labels={}), voxels={"liver": 0, "lesion": 9}) == {}


def test_a_volume_far_from_all_training_cases_is_flagged_with_both_numbers() -> None:
    assert flags(expected(), volumes_ml={"liver": 45.2})["volume"]["message"] == "liver is unusually small: 45.2 ml"
    large = flags(expected(), volumes_ml={"liver": 9000.0})["volume"]
    assert (large["value"], large["expected"]) == (9000.0, [900.0, 2200.0])
    assert flags(expected(), volumes_ml={"lesion": 9000.0}) == {}  # too few training cases to say


def test_the_range_of_a_label_covers_its_training_cases_and_a_margin() -> None:
    volumes = list(np.random.default_rng(0).lognormal(7, 0.3, 60))
    found = label_range([0.0, *volumes])
    assert found is not None
    assert found["low"] < min(volumes) < found["median"] < max(volumes) < found["high"]
    fresh = np.random.default_rng(1).lognormal(7, 0.3, 10_000)
    assert np.mean((fresh < found["low"]) | (fresh > found["high"])) < 0.02
    assert label_range([5.0] * 8) == {"low": pytest.approx(3.704, abs=1e-3), "median": 5.0, "high": pytest.approx(6.749, abs=1e-3)}
    assert label_range([5.0] * 7) is None


def test_ct_in_wrong_units_and_other_modalities_a_thousandfold() -> None:
    inside = np.random.default_rng(0).normal(60, 30, (1, 8, 20, 20)).astype(np.float32)
    assert flags(expected(), image=inside) == {}
    assert flags(expected(), image=inside * 10)["intensity"]["value"] > 200
    assert flags(expected(), image=inside + 1024)["intensity"]["expected"] == [-100.0, 200.0]
    mri = expected(ct=frozenset(), intensities={"0": {"percentile_00_5": 20.0, "percentile_99_5": 900.0}})
    image = inside + 300
    assert flags(mri, image=image) == {}
    assert flags(mri, image=image * 5) == {}  # another scanner
    assert "times the largest" in flags(mri, image=image * 1000)["intensity"]["message"]
    assert "times the smallest" in flags(mri, image=image / 1000)["intensity"]["message"]
    to_zero = expected(ct=frozenset(), intensities={"0": {"percentile_00_5": 0.0, "percentile_99_5": 900.0}})
    assert flags(to_zero, image=image / 1000) == {}


def test_spacing_beyond_the_training_cases() -> None:
    assert flags(expected(), spacing=[5.5, 0.6, 1.0]) == {}
    flag = flags(expected(), spacing=[10.0, 0.8, 0.8])["spacing"]
    assert flag["expected"] == [[1.0, 5.0], [0.7, 0.9], [0.7, 0.9]]
    assert flags(expected(), spacing=[1.0, 1.0]) == {}  # of another dimension: refused elsewhere


def test_a_voxel_order_that_no_training_case_has() -> None:
    known = expected(orders=frozenset({"LPS", "RAS"}))
    flag = flags(known, order="PIR")["voxel-order"]
    assert (flag["value"], flag["expected"]) == ("PIR", ["LPS", "RAS"])
    assert flags(known, order="RAS") == flags(known, order="") == flags(expected(), order="PIR") == {}


def test_folds_that_contradict_one_another() -> None:
    flag = flags(expected(), agreement={"liver": 0.9, "lesion": 0.1})["folds-disagree"]
    assert "lesion 0.10" in flag["message"]
    assert flags(expected(cv_dice=0.55), agreement={"lesion": 0.5}) == {}  # small lesions, where no fold is any better
    assert "folds-disagree" in flags(expected(cv_dice=0.55), agreement={"lesion": 0.3})


@pytest.mark.parametrize("regions", [False, True])
def test_the_agreement_is_the_mean_pairwise_dice(regions: bool) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2} if regions else {"background": 0, "a": 1, "b": 2}
    manager = SimpleNamespace(has_regions=regions, foreground_regions=[(1, 2), 2], foreground_labels=[1, 2])
    agreement = FoldAgreement(SimpleNamespace(label_manager=manager, dataset_json={"labels": labels}))  # type: ignore[arg-type]
    import torch

    generator = np.random.default_rng(0)
    folds = [generator.normal(size=(2 if regions else 3, 6, 7, 8)).astype(np.float16) for _ in range(3)]
    for logits in folds:
        agreement.add(torch.from_numpy(logits))
    masks = [[fold[0] > 0, fold[1] > 0] if regions else [fold.argmax(0) == 1, fold.argmax(0) == 2] for fold in folds]
    wanted = {}
    for place, name in enumerate(("whole", "core") if regions else ("a", "b")):
        dice = [
            2 * (x[place] & y[place]).sum() / (x[place].sum() + y[place].sum()) for x, y in zip(masks, [*masks[1:], masks[0]], strict=True)
        ]
        wanted[name] = pytest.approx(np.mean(dice))
    assert agreement.dice() == wanted


def test_a_preview_is_coarse_and_lies_on_the_image() -> None:
    image = np.random.default_rng(0).normal(size=(2, 40, 330, 500)).astype(np.float32)
    preview = Preview.of(image)
    assert preview.steps == (1, 3, 4)
    assert preview.channels[1].shape == (40, 110, 125)
    assert np.array_equal(preview.channels[1], preview.at(image[1]))


# --- in the step ----------------------------------------------------------------------------------------------------
@pytest.fixture
def home(tmp_path: Path) -> Workspace:
    """A promoted model of two folds, without a reference."""
    workspace = make_workspace(tmp_path / "work")
    root = workspace.model_root("m1") / DATASET
    save_stage(tmp_path / "other", LOW, seed=9)
    (folder,) = root.glob("*__*")
    shutil.copytree(tmp_path / "other" / folder.name / "fold_0", folder / "fold_1")
    card = read_json(root / "model.json")
    name = f"{folder.name}/fold_1/checkpoint_final.pth"
    files = {**card["files"], name: sha256_file(root / name)}
    card["selection"]["members"][0]["folds"] = [0, 1]
    write_json(root / "model.json", {**card, "files": files, "hash": selection_hash(card["selection"], files)})
    return workspace


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_step_records_flags_and_says_once_what_is_not_judged(home: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    make_image(folder / "a_0000.nii.gz", seed=1)
    first = read_json(Path(predict(home, folder, "plain")["predictions"]))
    assert set(first["not_judged"]) == {"volume", "spacing", "intensity"}
    assert {flag["code"] for flag in first["cases"]["a"]["flags"]} >= {"folds-disagree"}  # two networks of random weights

    root = home.model_root("m1") / DATASET
    ranges = {name: {"present": 20, "ml": {"low": 1e5, "median": 2e5, "high": 3e5}} for name in ("head", "tail")}
    known = {"cases": 20, "labels": ranges, "spacing": {"low": [5.0] * 3, "high": [6.0] * 3}, "orders": ["PIR"], "cv_dice": 0.9}
    write_json(root / "reference.json", known)
    again = predict(home, folder, "judged")
    second = read_json(Path(again["predictions"]))
    assert set(second["not_judged"]) == {"intensity"}
    assert second["flagged"] == 1
    found = second["cases"]["a"]["flags"]
    assert {"volume", "spacing", "folds-disagree", "voxel-order"} <= {flag["code"] for flag in found}

    from nnunet_jobs.prediction.cases import Case
    from nnunet_jobs.prediction.predictor import Predictor
    from nnunet_jobs.prediction.settings import Settings

    bare = tmp_path / "bare"
    bare.mkdir()
    context = StepContext(workspace=home, job=job_dir(home))
    predictor = Predictor(resolve_model(home, DATASET, None), context, Settings(mirroring=False, step_size=1.0))
    (record,) = predictor.predict([Case(case="a", images=(folder / "a_0000.nii.gz",))], bare)
    assert "flags" not in record
    assert record["files"] == {"a.nii.gz": sha256_file(Path(again["output"]) / "a.nii.gz")}  # looking on changes no byte


def test_what_the_model_was_trained_on_is_read_from_beside_it(home: Workspace) -> None:
    root = home.model_root("m1") / DATASET
    (folder,) = root.glob("*__*")
    plans = read_json(folder / "plans.json")
    plans["foreground_intensity_properties_per_channel"] = CT
    plans["configurations"][LOW]["normalization_schemes"] = ["CTNormalization"]
    plans["configurations"]["child"] = {"inherits_from": LOW}
    write_json(folder / "plans.json", plans)
    write_json(folder / "dataset_fingerprint.json", {"spacings": [[1, 1, 2], [3, 1, 1]]})
    known = Expected.of(resolve_model(home, DATASET, None))
    assert (known.ct, dict(known.intensities)) == (frozenset({0}), CT)
    assert known.spacing == {"low": [1.0, 1.0, 1.0], "high": [3.0, 1.0, 2.0]}
    assert set(known.not_judged) == {"volume"}


def test_real_cases_are_rarely_flagged_against_others_of_their_dataset(hippocampus: Path) -> None:
    """200 hippocampi of several scanners, judged by 100 of them; their intensities differ by hundreds."""
    import nibabel as nib

    volumes: dict[str, list[float]] = {"anterior": [], "posterior": []}
    foregrounds, cases = [], []
    for path in sorted((hippocampus / "labelsTr").glob("[!.]*.nii.gz")):
        file = nib.load(path)
        label = np.asarray(file.dataobj)
        image = np.asarray(nib.load(hippocampus / "imagesTr" / path.name).dataobj, dtype=np.float32)
        spacing = [float(step) for step in file.header.get_zooms()]
        counts = {name: int((label == value).sum()) for value, name in enumerate(volumes, start=1)}
        ml = {name: count * float(np.prod(spacing)) / 1000 for name, count in counts.items()}
        cases.append({"voxels": counts, "volumes_ml": ml, "spacing": spacing, "preview": Preview.of(image[None]), "segmentation": label})
        foregrounds.append(image[label > 0])
    known, judged = cases[::2], cases[1::2]
    low, high = np.percentile(np.concatenate(foregrounds[::2]), (0.5, 99.5))
    expected_here = Expected(
        cases=len(known),
        labels={name: {"present": len(known), "ml": label_range([case["volumes_ml"][name] for case in known])} for name in volumes},
        spacing={"low": [1.0] * 3, "high": [1.0] * 3},
        intensities={"0": {"percentile_00_5": float(low), "percentile_99_5": float(high)}},
    )
    found = [expected_here.flags(**case, agreement={}) for case in judged]
    assert len(judged) == 100
    assert sum(map(bool, found)) <= 3
    half = {**judged[0], "volumes_ml": {name: volume / 2.5 for name, volume in judged[0]["volumes_ml"].items()}}
    assert {flag["code"] for flag in expected_here.flags(**half, agreement={})} == {"volume"}
