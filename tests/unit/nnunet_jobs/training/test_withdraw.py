"""Models that have seen withdrawn cases: found, marked, demoted, refused; a training under way ends with the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from devtools.testbed.data import context
from nnunet_jobs.contract.failure import ConfigError, FailureClass
from nnunet_jobs.contract.steps.params import FindBestParams, TrainParams
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.withdrawals import WithdrawParams, trained_on_withdrawn
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.phantom import write_phantom
from nnunet_jobs.preprocessing import fingerprint
from nnunet_jobs.registry.promotion import promote
from nnunet_jobs.steps import find_best_config, withdraw
from nnunet_jobs.training import pretrained
from support.training import DATASET as PHANTOM
from support.training import Warm, build_workspace, wait_for
from support.withdraw import DATASET, fill, prepare, take_out, write_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Workspace, str]:
    """A workspace with a version and a promoted model of it."""
    monkeypatch.setattr(fingerprint, "INTENSITIES_PER_DATASET", 1e6)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")
    write_phantom(tmp_path / "source", cases=6, seed=3)
    workspace = Workspace.below(tmp_path / "work", input_roots=(str(tmp_path),))
    return workspace, fill(workspace, tmp_path / "source")


def test_models_trained_on_the_case_are_listed_and_marked(filled: tuple[Workspace, str]) -> None:
    workspace, version = filled
    case = read_json(workspace.preprocessed_root(version) / DATASET / "splits_final.json")[0]["val"][0]
    write_model(workspace, "tuned", "elsewhere", folds=(0,), dataset="Dataset009_Other", pretrained="first")
    write_model(workspace, "tuned_again", "elsewhere", folds=(0,), dataset="Dataset009_Other", pretrained="hash of tuned 0")
    write_model(workspace, "untouched", "elsewhere", folds=(0,))
    result = take_out(workspace, case)
    by_name = {model["model"]: model for model in result["models"]}
    assert list(by_name) == ["first", "tuned", "tuned_again"]
    assert by_name["first"]["configurations"] == {"2d": [1, "all"]}  # it was validated in fold 0
    assert (by_name["first"]["promoted"], by_name["tuned"]["through"], by_name["tuned_again"]["through"]) == (True, "first", "tuned")
    assert result["model_files"] == 6  # predicted by folds 0 and all, with probabilities
    assert not list(Path(workspace.results).rglob(f"{case}*"))
    marks = {model: trained_on_withdrawn(next(workspace.model_root(model).glob("Dataset*"))) for model in (*by_name, "untouched")}
    assert marks["first"][case]["configurations"] == {"2d": [1, "all"]}
    assert (list(marks["tuned"]), marks["tuned_again"][case]["through"], marks["untouched"]) == ([case], "tuned", {})
    assert workspace.champion(DATASET) == "first"
    said = withdraw.text(result)
    assert "Models trained on them: 3" in said
    assert f"model first of {DATASET} (promoted): 2d folds 1, all" in said
    with pytest.raises(ConfigError, match=f"model='first': not promoted, case {case} was withdrawn since it was trained on"):
        promote(workspace, DATASET, "first")
    with pytest.raises(ConfigError, match=f"model='first': case {case} was withdrawn since it was trained on; train on a new version"):
        find_best_config.run(FindBestParams(dataset=DATASET, model="first", folds=[0, 1]), context(workspace))
    tuning = TrainParams(dataset=DATASET, configuration="2d", fold=0, pretrained="first")
    file = workspace.model_root("first") / DATASET / "nnUNetTrainer__nnUNetPlans__2d" / "fold_1" / "checkpoint_final.pth"
    inside = Workspace(**{**workspace.to_json(), "input_roots": (workspace.results,)})
    for params in (tuning, replace(tuning, pretrained=str(file))):
        with pytest.raises(ConfigError, match=f"pretrained='.*': case {case} was withdrawn since that model was trained on; name another"):
            pretrained.find(params, inside)
    assert take_out(workspace, case, demote=True)["demoted"] == ["first"]
    assert workspace.champion(DATASET) is None
    take_out(workspace, case, restore=True)
    assert not list(Path(workspace.results).rglob("withdrawn.json"))


def test_predictions_are_listed_and_go_only_when_asked_for(filled: tuple[Workspace, str]) -> None:
    workspace, _ = filled
    folder = Path(workspace.output_roots[0]) / "new"
    case, other, last = sorted(workspace.manifest(DATASET)["cases"])[:3]
    assert take_out(workspace, case)["predictions"] == [{"folder": str(folder), "cases": [case], "deleted": False}]
    assert (folder / f"{case}.nii.gz").exists()
    take_out(workspace, case, predictions=True)
    assert sorted(path.name for path in folder.glob("*.nii.gz")) == [f"{other}.nii.gz", f"{last}.nii.gz"]
    summary = read_json(folder / "predictions.json")
    assert (summary["predicted"], sorted(summary["cases"]), summary["dice"]["cases"]) == (2, [other, last], 2)
    assert summary["dice"]["mean"] == pytest.approx(0.65)
    assert take_out(workspace, case)["predictions"] == []


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A preprocessed phantom of one's own, to be changed."""
    return build_workspace(tmp_path_factory.mktemp("withdrawn"))


@pytest.mark.training
def test_a_training_under_way_ends_as_config_with_the_reason(warm: Warm, phantom: Workspace) -> None:
    training = warm.train(phantom, epochs=400)
    wait_for(lambda: training.metrics("train"), what="the first epoch")
    case = sorted(phantom.manifest(PHANTOM)["cases"])[2]
    result = withdraw.run(WithdrawParams(dataset="5", cases=[case]), context(phantom, "withdraw"))
    assert [model["configurations"] for model in result["models"]] in ([{"2d_micro": [0]}], [{}])
    failure = training.failure()
    assert failure.failure_class is FailureClass.CONFIG
    assert f"case {case} was withdrawn from {PHANTOM}" in failure.message
    assert "run PreprocessOperator again" in failure.message
    assert not list(Path(phantom.results).rglob(f"{case}.*"))


def test_the_next_version_is_trained_on_without_complaint(filled: tuple[Workspace, str]) -> None:
    workspace, version = filled
    case = sorted(workspace.manifest(DATASET)["cases"])[0]
    take_out(workspace, case)
    new = prepare(workspace)["version"]
    assert new != version
    write_model(workspace, "second", new, folds=(0,))
    assert [model["model"] for model in take_out(workspace, case)["models"]] == ["first"]
