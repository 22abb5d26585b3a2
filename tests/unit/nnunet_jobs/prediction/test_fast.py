"""Fast mode's options for the network: nearly the exact logits, and an option that cannot work here costs speed, not the prediction."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from devtools.testbed.serving import make_workspace
from devtools.testbed.stages import DATASET, save_stage
from nnunet_jobs.contract.storage.files import read_json, sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction import network as network_module
from nnunet_jobs.prediction.model import resolve_model, selection_hash
from nnunet_jobs.prediction.network import StageNetwork

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A model of one stage and two folds with different weights."""
    folder = tmp_path_factory.mktemp("fast")
    workspace = make_workspace(folder / "work")
    root = workspace.model_root("m1") / DATASET
    other = folder / "other"
    save_stage(other, "3d_lowres", seed=2)
    card = read_json(root / "model.json")
    (stage,) = [path for path in root.iterdir() if path.is_dir()]
    shutil.copytree(other / stage.name / "fold_0", stage / "fold_1")
    card["selection"]["members"][0]["folds"] = [0, 1]
    weights = stage / "fold_1" / "checkpoint_final.pth"
    card["files"][weights.relative_to(root).as_posix()] = sha256_file(weights)
    write_json(root / "model.json", {**card, "hash": selection_hash(card["selection"], card["files"])})
    return workspace


def logits(workspace: Workspace, *fast: str) -> Any:
    import torch

    model = resolve_model(workspace, DATASET, None)
    network = StageNetwork(model, model.members[0], device=torch.device("cpu"), cpus=1, fast=fast)
    data = torch.randn((1, 30, 40, 30), generator=torch.Generator().manual_seed(0))
    return network.logits(data, mirroring=True, step_size=0.5, on_tile=lambda: None).float().numpy()


@pytest.fixture(scope="module")
def exact(workspace: Workspace) -> Any:
    return logits(workspace)


def test_several_windows_at_once_give_nearly_the_same(workspace: Workspace, exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "_CPU_VOXELS", 5 * 16 * 24 * 16)
    assert logits(workspace, "tiles") == pytest.approx(exact, abs=0.01)


def test_a_compiled_network_has_every_folds_weights(workspace: Workspace, exact: Any) -> None:
    assert logits(workspace, "compile") == pytest.approx(exact, abs=0.01)


def test_without_a_compiler_the_network_runs_as_it_is(
    workspace: Workspace, exact: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    import torch
    import torch._inductor.config

    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(tmp_path / "no-compiler"),))
    assert (logits(workspace, "compile") == exact).all()
    assert "cannot be compiled here" in caplog.text
