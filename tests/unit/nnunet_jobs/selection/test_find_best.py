"""Selecting from a really trained model: stock nnU-Net's numbers, refusals by name, repair, card, promotion."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_jobs.contract.failure import ConfigError, DataError, Interrupted
from nnunet_jobs.contract.steps.params import FindBestParams
from nnunet_jobs.contract.steps.results import RESULTS
from nnunet_jobs.contract.storage.files import read_json, sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.promotion import promote
from nnunet_jobs.steps.find_best_config import run
from support.selection import CONFIGURATIONS, DATASET, context, copy_of, model_of, run_steps, second_model, stock_selection, train_model

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
TWO_FOLDS = {"dataset": 5, "folds": [0, 1]}
ENSEMBLE = "ensemble___nnUNetTrainer__nnUNetPlans__2d_micro___nnUNetTrainer__nnUNetPlans__3d_micro___0_1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two configurations, two folds, not selected from. Never changed: tests work on copies."""
    return train_model(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def selected(trained: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, Any]]:
    """The same, selected and promoted; never changed."""
    workspace = copy_of(trained, tmp_path_factory.mktemp("selected"))
    (result,) = run_steps(workspace, ("find_best_config", {**TWO_FOLDS, "recipe": "first"}))
    return workspace, result


def test_each_step_writes_exactly_what_its_result_declares(selected: tuple[Workspace, dict[str, Any]], tmp_path: Path) -> None:
    workspace = copy_of(selected[0], tmp_path)
    run_steps(workspace, ("predict", {"dataset": 5, "cases": "holdout", "output": str(tmp_path / "predictions" / "declared")}))
    seen = set()
    for path in Path(workspace.jobs).glob("*/result.json"):
        step = path.parent.name.rpartition("-")[0]
        result = read_json(path)["result"]
        assert RESULTS[step].from_json(result).to_json() == result
        seen.add(step)
    assert seen == RESULTS.keys()


def test_dice_choice_and_postprocessing_are_those_of_stock_nnunet(
    trained: Workspace, selected: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    workspace, result = selected
    card = read_json(Path(result["card"]))
    stock_workspace = copy_of(trained, tmp_path)
    stock = stock_selection(stock_workspace, [0, 1])
    assert card["metrics"]["candidates"] == stock["all_results"]
    assert set(stock["all_results"]) == {*(f"nnUNetTrainer__nnUNetPlans__{name}" for name in CONFIGURATIONS), ENSEMBLE}
    best = stock["best_model_or_ensemble"]
    assert result["cv_dice"] == best["result_on_crossval_pre_pp"]
    assert result["cv_dice_postprocessed"] == best["result_on_crossval_post_pp"]
    chosen = [member["configuration"] for member in card["selection"]["members"]]
    assert chosen == [member["configuration"] for member in best["selected_model_or_models"]]
    ours, theirs = (Path(root.results) / ".versions" / model_of(root) / DATASET for root in (workspace, stock_workspace))
    stock_postprocessing = read_json(theirs / Path(best["postprocessing_file"]).relative_to(theirs).with_suffix(".json"))
    assert read_json(ours / "postprocessing.json") == stock_postprocessing
    information = read_json(ours / "inference_information.json")
    assert {name: information[name] for name in ("folds", "considered_models", "all_results")} == {
        name: stock[name] for name in ("folds", "considered_models", "all_results")
    }
    assert (ours / information["best_model_or_ensemble"]["postprocessing_file"]).is_file()
    folders = [f"nnUNetTrainer__nnUNetPlans__{name}/crossval_results_folds_0_1" for name in CONFIGURATIONS] + [f"ensembles/{ENSEMBLE}"]
    for folder in folders:
        assert voxels(ours / folder) == voxels(theirs / folder)
        assert numbers(ours / folder) == numbers(theirs / folder)
        extras = {"postprocessed", "postprocessing.json", "postprocessing.pkl"}
        assert {path.name for path in (ours / folder).iterdir()} - extras == {path.name for path in (theirs / folder).iterdir()} - extras


def test_a_prediction_of_the_holdout_is_made_once_and_again_only_where_image_or_label_changed(
    selected: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    workspace, first = copy_of(selected[0], tmp_path), model_of(selected[0])
    challenger = second_model(workspace, first, "challenger")
    folder = workspace.model_root(first) / DATASET / "holdout"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}
    seen = workspace.model_root(first) / DATASET / "training_cases.json"
    assert not set(read_json(seen)["cases"]) & set(held_out(workspace))
    fields = {**TWO_FOLDS, "model": challenger, "promote": "if_better"}
    assert run(FindBestParams(**fields), context(workspace))["compared_cases"] == len(before)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")} == before, "nothing is predicted again"

    import nibabel

    # A corrected label: both models are judged by it, and by it alone is anything done again.
    corrected = held_out(workspace)[0]
    label = workspace.raw_dataset(DATASET) / "labelsTs" / f"{corrected}.nii.gz"
    image = nibabel.load(label)
    voxels = np.asarray(image.dataobj).copy()
    voxels[:, :, : voxels.shape[2] // 2] = 0
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine, image.header), label)
    manifest = workspace.manifest(DATASET)
    manifest["cases"][corrected]["label"] = sha256_file(label)
    write_json(workspace.raw_dataset(DATASET) / "manifest.json", manifest)
    # The first hold-out case of a patient that the champion was trained on is left out for both.
    known = read_json(seen)
    other = held_out(workspace)[1]
    write_json(seen, {**known, "cases": {**known["cases"], "earlier visit": manifest["cases"][other]["group"]}})
    (again,) = run_steps(workspace, ("find_best_config", fields))
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}
    assert {name for name in before if after[name] != before[name]} == {f"{corrected}.nii.gz"}
    assert again["compared_cases"] == len(before) - 1
    assert again["gain"] == 0


def test_the_holdout_is_predicted_from_raw_images_and_its_dice_is_in_the_card(selected: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, result = selected
    raw = workspace.raw_dataset(DATASET)
    held = held_out(workspace)
    assert held
    predictions = Path(result["card"]).parent / "holdout"
    assert {path.name for path in predictions.iterdir()} == {".scores", "metrics.json", *(f"{case}.nii.gz" for case in held)}
    for label, value in (("anterior", 1), ("posterior", 2)):
        dices = []
        for case in held:
            pair = [array(folder / f"{case}.nii.gz") == value for folder in (raw / "labelsTs", predictions)]
            dices.append(2 * np.count_nonzero(pair[0] & pair[1]) / (np.count_nonzero(pair[0]) + np.count_nonzero(pair[1])))
        assert result["holdout_dice_per_label"][label] == pytest.approx(np.mean(dices))
    assert result["holdout_dice"] == pytest.approx(np.mean(list(result["holdout_dice_per_label"].values())))


def test_the_card_names_data_plans_versions_commands_and_every_file(selected: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, result = selected
    root = Path(result["card"]).parent
    card = json.loads((root / "model.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    manifest = workspace.manifest(DATASET)
    assert (card["dataset_hash"], card["training_hash"]) == (manifest["hash"], manifest["training_hash"])
    assert card["recipe"] == "first"
    assert card["versions"]["nnunetv2"] == "2.8.1"
    assert card["training"]["seed"] == 1
    for member in card["selection"]["members"]:
        for fold in (0, 1):
            name = f"nnUNetTrainer__nnUNetPlans__{member['configuration']}/fold_{fold}/checkpoint_final.pth"
            assert card["files"][name] == sha256_file(root / name)
    assert card["commands"][0][0] == "nnUNetv2_predict"
    assert str(workspace.results) not in (root / "model.json").read_text(), "a card can be moved"


def test_selecting_again_finds_the_card_and_keeps_it(selected: tuple[Workspace, dict[str, Any]], tmp_path: Path) -> None:
    workspace = copy_of(selected[0], tmp_path)
    root = workspace.model_root(model_of(workspace)) / DATASET
    before = (root / "model.json").read_bytes()
    again = run(FindBestParams(**TWO_FOLDS, recipe="first"), context(workspace))
    assert (selected[1]["promoted"], selected[1]["is_champion"]) == (True, True)
    assert again == {**selected[1], "card": str(root / "model.json"), "already_done": True, "promoted": False}
    assert (root / "model.json").read_bytes() == before
    renamed = run(FindBestParams(**TWO_FOLDS, recipe="second"), context(workspace))
    assert renamed["already_done"]
    assert {**read_json(root / "model.json"), "recipe": "first"} == json.loads(before)


def test_what_the_training_cases_are_like_is_kept_beside_the_card(selected: tuple[Workspace, dict[str, Any]], tmp_path: Path) -> None:
    import nibabel as nib

    workspace = copy_of(selected[0], tmp_path)
    root = workspace.model_root(model_of(workspace)) / DATASET
    written = read_json(root / "reference.json")
    cases = [case for case, entry in workspace.manifest(DATASET)["cases"].items() if entry["split"] == "train"]
    masks = [nib.load(workspace.raw_dataset(DATASET) / "labelsTr" / f"{case}.nii.gz") for case in cases]
    for value, (name, known) in enumerate(written["labels"].items(), start=1):
        present = sum(bool((np.asarray(mask.dataobj) == value).any()) for mask in masks)
        assert known == {"present": present, "ml": None}, name  # too few cases for a range
    assert written["cases"] == len(cases)
    assert written["cv_dice"] == selected[1]["cv_dice_postprocessed"]
    assert len(written["spacing"]["low"]) == 3
    (root / "reference.json").unlink()
    run(FindBestParams(**TWO_FOLDS, recipe="first"), context(workspace))
    assert read_json(root / "reference.json") == written


def test_a_stopped_selection_leaves_the_former_card(selected: tuple[Workspace, dict[str, Any]], tmp_path: Path) -> None:
    workspace = copy_of(selected[0], tmp_path)
    card = workspace.model_root(model_of(workspace)) / DATASET / "model.json"
    before, surroundings = card.read_bytes(), context(workspace)
    surroundings.stop.set()
    with pytest.raises(Interrupted):
        run(FindBestParams(dataset=5, folds=[0], promote="always"), surroundings)
    assert card.read_bytes() == before


def test_incomplete_folds_are_refused_by_name(trained: Workspace, tmp_path: Path) -> None:
    workspace = copy_of(trained, tmp_path)
    root = workspace.model_root(model_of(workspace)) / DATASET
    folder = root / "nnUNetTrainer__nnUNetPlans__3d_micro"
    next((folder / "fold_0" / "validation").glob("*.nii.gz")).unlink()
    shutil.rmtree(folder / "fold_1")
    with pytest.raises(ConfigError, match=r"3d_micro fold 0: validation/.*is missing.*3d_micro fold 1: not trained.*repair=True"):
        run(FindBestParams(**TWO_FOLDS, repair=False), context(workspace))
    with pytest.raises(ConfigError, match=r"\(3d_micro fold 1: not trained; its training has not ended\); train these folds"):
        run(FindBestParams(**TWO_FOLDS), context(workspace))
    (folder / "fold_all").mkdir()
    with pytest.raises(ConfigError, match=r"fold=2: the splits have folds 0 to 1"):
        run(FindBestParams(dataset=5, folds=[0, 2], configurations=["2d_micro"]), context(workspace))
    assert not (root / "model.json").exists()
    assert workspace.champion(DATASET) is None


def test_fault_30_a_damaged_checkpoint_is_neither_selected_nor_repaired_nor_promoted(
    selected: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    workspace = copy_of(selected[0], tmp_path)
    model = model_of(workspace)
    name = next(name for name in read_json(Path(selected[1]["card"]))["files"] if name.endswith("fold_1/checkpoint_final.pth"))
    checkpoint = workspace.model_root(model) / DATASET / name
    data = bytearray(checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    status = checkpoint.stat()
    checkpoint.write_bytes(data)
    os.utime(checkpoint, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ConfigError, match=r"_micro fold 1: checkpoint_final.pth .*has changed since it was verified"):
        run(FindBestParams(**TWO_FOLDS, recipe="first"), context(workspace))
    workspace.champion_link(DATASET).unlink()
    with pytest.raises(DataError, match=name):
        promote(workspace, DATASET, model)
    assert workspace.champion(DATASET) is None


def test_a_lost_validation_is_repaired_and_gives_the_same_card(
    trained: Workspace, selected: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    workspace = copy_of(trained, tmp_path)
    folder = workspace.model_root(model_of(workspace)) / DATASET / "nnUNetTrainer__nnUNetPlans__2d_micro" / "fold_1"
    shutil.rmtree(folder / "validation")
    (repaired,) = run_steps(workspace, ("find_best_config", {**TWO_FOLDS, "promote": "never"}))
    names = ("choice", "cv_dice", "cv_dice_postprocessed", "holdout_dice")
    assert {name: repaired[name] for name in names} == {name: selected[1][name] for name in names}
    assert not repaired["promoted"]
    assert workspace.champion(DATASET) is None


def test_one_fold_of_one_configuration_and_a_holdout_that_was_changed(trained: Workspace, tmp_path: Path) -> None:
    workspace = copy_of(trained, tmp_path)
    fields = {"dataset": DATASET, "folds": [1], "configurations": ["3d_micro"], "model": model_of(workspace), "promote": "always"}
    label = next((workspace.raw_dataset(DATASET) / "labelsTs").glob("*.nii.gz"))
    kept = label.read_bytes()
    label.write_bytes(kept + b"\0")
    with pytest.raises(DataError, match=rf"{label.name}\]: is missing or differs from the manifest"):
        run(FindBestParams(**fields), context(workspace))
    label.write_bytes(kept)
    (result,) = run_steps(workspace, ("find_best_config", fields))
    assert result["choice"] == "nnUNetTrainer__nnUNetPlans__3d_micro"
    assert result["promoted"]
    fold = read_json(Path(result["card"]).parent / "nnUNetTrainer__nnUNetPlans__3d_micro" / "fold_1" / "fold.json")
    assert result["cv_dice"] == fold["dice"]
    assert read_json(Path(result["card"]))["selection"]["members"][0]["folds"] == [1]


def held_out(workspace: Workspace) -> list[str]:
    return [case for case, entry in workspace.manifest(DATASET)["cases"].items() if entry["split"] == "holdout"]


def test_only_a_better_model_is_promoted_and_an_earlier_one_can_be_put_back(
    selected: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    workspace, first = copy_of(selected[0], tmp_path), model_of(selected[0])
    assert workspace.champion(DATASET) == first

    def offer(model: str, policy: str = "if_better", **gate: float) -> dict[str, Any]:
        return run(FindBestParams(**TWO_FOLDS, model=model, promote=policy, gate=gate), context(workspace))

    worse = second_model(workspace, first, "worse", gain=-0.01)
    same = second_model(workspace, first, "same")
    better = second_model(workspace, first, "better", gain=0.02)
    any_gain = {"error_budget_per_year": 50.0, "runs_per_year": 100.0}
    few = offer(better)
    assert (few["promoted"], few["decision"]) == (False, "keep")
    assert "may be chance at an error budget of 0.05 a year" in few["reason"]
    for model in (worse, same):
        kept = offer(model, **any_gain)
        assert (kept["promoted"], kept["decision"], kept["champion_before"]) == (False, "keep", first)
        assert workspace.champion(DATASET) == first
    assert not offer(better, "never")["promoted"]
    assert offer(better, "ask")["decision"] == "ask"
    found = offer(better, **any_gain)
    assert found["promoted"]
    assert found["gain"] == pytest.approx(0.02)
    card = read_json(workspace.model_root(better) / DATASET / "model.json")["decision"]
    assert (card["by"], card["champion_before"], card["cases"]) == ("hold-out", first, len(held_out(workspace)))
    assert os.readlink(workspace.champion_link(DATASET)) == f".versions/better/{DATASET}"
    assert not offer(worse, **any_gain)["promoted"]
    assert offer(worse, "always")["promoted"]
    promote(workspace, DATASET, first)
    assert workspace.champion(DATASET) == first
    with pytest.raises(ConfigError, match="model='gone'"):
        promote(workspace, DATASET, "gone")
    workspace.champion_link(DATASET).unlink()
    workspace.champion_link(DATASET).mkdir()
    with pytest.raises(ConfigError, match="is not a link"):
        promote(workspace, DATASET, first)


def test_fold_all_is_taken_as_it_is_when_asked_and_predicts_by_name_beside_the_others(trained: Workspace, tmp_path: Path) -> None:
    workspace = copy_of(trained, tmp_path)
    model = model_of(workspace)
    root = workspace.model_root(model) / DATASET
    settings = read_json(root / "settings.json")
    same = {name: settings[name] for name in ("epochs", "iterations", "val_iterations", "optimizer", "initial_lr", "mirroring", "seed")}
    asked = {"dataset": 5, "cases": "holdout", "model": model, "folds": ["all"]}
    on_all, beside, predicted = run_steps(
        workspace,
        ("train", {"dataset": 5, "configuration": "3d_micro", "fold": "all", **same}),
        ("find_best_config", {**TWO_FOLDS, "configurations": ["3d_micro"], "promote": "never"}),
        ("predict", {**asked, "output": str(tmp_path / "predictions" / "beside")}),
    )
    assert on_all["model"] == model
    assert predicted["failed"] == []
    card = read_json(Path(beside["card"]))
    (member,) = card["selection"]["members"]
    assert (member["folds"], member["further_folds"]) == ([0, 1], ["all"])
    assert card["validation"]["cross_validated"]
    assert "all" not in card["commands"][0], "the model itself predicts with the validated folds"

    for name in CONFIGURATIONS:
        for fold in (0, 1):
            shutil.rmtree(root / f"nnUNetTrainer__nnUNetPlans__{name}" / f"fold_{fold}")
    with pytest.raises(ConfigError, match=r"only fold 'all' is trained \(3d_micro\), and it has no cross-validation.*promote='always'"):
        run(FindBestParams(**TWO_FOLDS), context(workspace))
    alone, again = run_steps(
        workspace,
        ("find_best_config", {**TWO_FOLDS, "promote": "always"}),
        ("predict", {"dataset": 5, "cases": "holdout", "output": str(tmp_path / "predictions" / "alone")}),
    )
    assert (alone["promoted"], alone["cv_dice"], alone["choice"]) == (True, None, "nnUNetTrainer__nnUNetPlans__3d_micro")
    assert alone["holdout_dice"] is not None, "the hold-out was not trained on"
    assert again["failed"] == []
    card = read_json(Path(alone["card"]))
    assert (card["validation"]["cross_validated"], card["metrics"]["cv_cases"], card["selection"]["postprocessing"]) == (False, 0, [])
    assert card["validation"]["note"].startswith("Without an honest validation")
    (argv,) = card["commands"]
    assert argv[argv.index("-f") : argv.index("-tr")] == ["-f", "all"]
    explicit = run(FindBestParams(dataset=5, folds=["all"], promote="never"), context(workspace, "select-00000002"))
    assert (explicit["already_done"], explicit["is_champion"], explicit["promoted"]) == (True, True, False)


@pytest.mark.parametrize(("fields", "said"), [
    ({"folds": ["all"]}, "promote='if_better': fold 'all' has no validation to compare by"),
    ({"folds": [0, "all"], "promote": "always"}, r"folds=\[0, 'all'\]: name numbered folds, 0 and up, or 'all' alone"),
    ({"folds": ["every"], "promote": "always"}, r"folds=\['every'\]"),
])  # fmt: skip
def test_what_cannot_be_compared_is_said_where_it_is_entered(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FindBestParams(dataset=5, **fields)
    assert FindBestParams(dataset=5, folds=["0", 1]).folds == [0, 1]


def voxels(folder: Path) -> dict[str, str]:
    """sha256 of the voxels of every segmentation in a folder."""
    return {path.name: hashlib.sha256(array(path).tobytes()).hexdigest() for path in sorted(folder.glob("*.nii.gz"))}


def array(path: Path) -> Any:
    """Voxels of a segmentation."""
    import nibabel as nib

    return np.asarray(nib.load(path).dataobj)


def numbers(folder: Path) -> Any:
    """summary.json without its paths."""
    summary = read_json(folder / "summary.json")
    cases = {Path(case["prediction_file"]).name: repr(case["metrics"]) for case in summary["metric_per_case"]}
    return cases, repr(summary["mean"]), repr(summary["foreground_mean"])


def test_surfaces_are_measured_beside_dice_and_again_for_another_tolerance(
    selected: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    workspace = copy_of(selected[0], tmp_path)
    root = workspace.model_root(model_of(workspace)) / DATASET
    before = read_json(root / "model.json")
    surfaces = before["metrics"]["surfaces"]
    (written,) = root.glob("**/postprocessed/metrics.json")
    report = read_json(written)
    assert surfaces["tolerance_mm"] == report["tolerance_mm"] == {"anterior": 1.0, "posterior": 1.0}
    assert surfaces["implementation"] == report["implementation"]
    assert surfaces["cv"] == {name: report[name] for name in ("per_label", "foreground")}
    assert len(report["cases"]) == before["metrics"]["cv_cases"]
    held = read_json(root / "holdout" / "metrics.json")
    assert set(held["cases"]) == set(held_out(workspace))
    assert surfaces["holdout"] == {name: held[name] for name in ("per_label", "foreground")}
    assert surfaces["holdout"]["foreground"]["dice"] == pytest.approx(before["metrics"]["holdout_dice"])
    for label, dice in before["metrics"]["cv_per_label_postprocessed"].items():
        assert surfaces["cv"]["per_label"][label]["dice"] == pytest.approx(dice)
    run(FindBestParams(**TWO_FOLDS, recipe="first", tolerance_mm={"anterior": 3}), context(workspace))
    after = read_json(root / "model.json")
    assert after["metrics"]["surfaces"]["tolerance_mm"] == {"anterior": 3.0, "posterior": 1.0}
    assert {**after["metrics"], "surfaces": None} == {**before["metrics"], "surfaces": None}, "nothing is selected again"
    nsd = [card["metrics"]["surfaces"]["cv"]["per_label"]["anterior"]["nsd"] for card in (before, after)]
    assert nsd[0] < nsd[1]
    with pytest.raises(ConfigError, match=r"tolerance_mm='tail'.*its labels are anterior, posterior"):
        run(FindBestParams(**TWO_FOLDS, recipe="first", tolerance_mm={"tail": 3}), context(workspace))
