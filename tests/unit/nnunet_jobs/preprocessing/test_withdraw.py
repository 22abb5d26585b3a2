"""A case is withdrawn: register, preprocess, withdraw, register again, preprocess again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from devtools.testbed.data import context, register_dataset
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import PreprocessParams, TrainParams
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.withdrawals import WithdrawParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.phantom import write_phantom
from nnunet_jobs.preprocessing import fingerprint
from nnunet_jobs.preprocessing.version import published
from nnunet_jobs.steps import preprocess, train, withdraw

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
DATASET = "Dataset004_Small"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "INTENSITIES_PER_DATASET", 1e6)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "source"
    write_phantom(folder, cases=8, seed=5)
    return folder


def prepare(workspace: Workspace) -> dict[str, Any]:
    params = PreprocessParams(datasets=[DATASET], configurations=["2d"], folds=3)
    return dict(preprocess.run(params, context(workspace, "preprocess"))["datasets"][0])


def take_out(workspace: Workspace, *cases: str, **params: Any) -> dict[str, Any]:
    return withdraw.run(WithdrawParams(dataset=DATASET, cases=list(cases), **params), context(workspace, "withdraw"))


def named(root: Path, case: str) -> list[str]:
    return sorted(str(path) for path in root.rglob(f"*{case}*"))


def test_a_withdrawn_case_leaves_raw_and_every_version_and_stays_away(tmp_path: Path, source: Path) -> None:
    workspace = Workspace.below(tmp_path / "work", input_roots=(str(tmp_path), str(source.parent)))
    first = register_dataset(workspace, source, holdout_fraction=0.0)
    before = prepare(workspace)
    splits = read_json(Path(before["path"]) / "splits_final.json")
    remembered = set((Path(workspace.preprocessed) / ".fingerprints" / DATASET).iterdir())
    case = splits[1]["val"][0]
    assert named(tmp_path, case)

    result = take_out(workspace, case, reason="consent withdrawn")
    assert result["versions"] == [
        {"version": before["version"], "cases": {case: {"train": [0, 2], "val": [1]}}, "files": 4},
    ]
    assert (result["splits"], result["models"], result["left"]) == ({case: "train"}, [], [])
    assert named(tmp_path, case) == []
    assert len(remembered - set((Path(workspace.preprocessed) / ".fingerprints" / DATASET).iterdir())) == 1
    (version,) = published(workspace, DATASET)
    assert version.damage() == []
    assert list(version.withdrawn) == [case]
    assert case not in json.dumps({name: value for name, value in version.record.items() if name != "withdrawn"})
    with pytest.raises(ConfigError, match=rf"version='{before['version']}': case {case} was withdrawn .*run PreprocessOperator again"):
        train.run(TrainParams(dataset=DATASET, configuration="2d", fold=0), context(workspace, "train"))

    again = register_dataset(workspace, source, holdout_fraction=0.0)
    assert (again["withdrawn"], again["train"], again["already_done"]) == (1, first["train"] - 1, True)
    after = prepare(workspace)
    assert after["version"] != before["version"]
    assert (after["computed"], after["linked"], after["cases"]) == (0, 7, 7)
    assert read_json(Path(after["path"]) / "splits_final.json") == [
        {part: [name for name in fold[part] if name != case] for part in ("train", "val")} for fold in splits
    ]
    assert named(tmp_path, case) == []
    assert prepare(workspace)["already_done"]

    take_out(workspace, case, restore=True)
    back = register_dataset(workspace, source, holdout_fraction=0.0)
    assert (back["added"], back["withdrawn"], back["hash"]) == (1, 0, first["hash"])
    whole = prepare(workspace)
    assert (whole["computed"], whole["linked"], whole["cases"]) == (1, 7, 8)
    assert not published(workspace, DATASET)[0].withdrawn


def test_a_dry_run_says_the_same_and_changes_nothing(tmp_path: Path, source: Path) -> None:
    workspace = Workspace.below(tmp_path / "work", input_roots=(str(source.parent),))
    register_dataset(workspace, source, holdout_fraction=0.0)
    prepare(workspace)
    case = sorted(workspace.manifest(DATASET)["cases"])[3]
    roots = (Path(workspace.raw), Path(workspace.preprocessed))
    before = {path: path.lstat().st_mtime_ns for root in roots for path in root.rglob("*") if ".locks" not in path.parts}
    said = take_out(workspace, case, dry_run=True)
    assert {path: path.lstat().st_mtime_ns for root in roots for path in root.rglob("*") if ".locks" not in path.parts} == before
    assert take_out(workspace, case) == {**said, "dry_run": False}
    assert take_out(workspace, case) == {
        **said,
        "dry_run": False,
        "already_done": True,
        "splits": {},
        "versions": [{**said["versions"][0], "files": 0}],
    }
