"""Real cases with regions: 2d, 3d_fullres, their ensemble and postprocessing, the bytes of nnU-Net's own commands."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from devtools.testbed.prediction import CONFIGURATIONS, PLANS, TRAINER, job_dir, preprocessed, segmentations, write_card
from devtools.testbed.preprocessing import DATASET, PROJECT
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.steps.predict import run
from support.foreign_warnings import FOREIGN_WARNINGS

pytestmark = FOREIGN_WARNINGS

REGIONS: dict[str, Any] = {"labels": {"background": 0, "whole": [1, 2], "posterior": 2}, "regions_class_order": [1, 2]}
LARGEST = {"labels_or_regions": [1, 2]}


@pytest.fixture(scope="module")
def workspace(hippocampus: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Four training and two hold-out cases, and networks with random weights."""
    folder = tmp_path_factory.mktemp("exact")
    workspace = Workspace.below(folder / "work", input_roots=(str(folder),))
    names = sorted(path.name.removesuffix(".nii.gz") for path in (hippocampus / "labelsTr").glob("[!.]*.nii.gz"))[:6]
    version = preprocessed(workspace, hippocampus, names, names[4:], **REGIONS)
    # nnU-Net reads its folders from the environment once a process, so its trainer runs in one of its own
    code = "import json, sys; from devtools.testbed.prediction import save_in_this_process; save_in_this_process(json.loads(sys.argv[1]))"
    path = os.pathsep.join(str(PROJECT / part) for part in ("plugins", "."))
    request = json.dumps({"workspace": workspace.to_json(), "version": str(version)})
    subprocess.run(
        [sys.executable, "-c", code, request], env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, timeout=300
    )
    return workspace


# Each command as its own script would run it, one after another in one process: importing nnU-Net takes longer than any of them.
COMMANDS = """
import json, sys
from importlib.metadata import entry_points

scripts = {point.name: point for point in entry_points(group="console_scripts")}
if __name__ == "__main__":
    for command, *arguments in json.loads(sys.argv[1]):
        sys.argv = [command, *arguments]
        scripts[command].load()()
"""


def stock(workspace: Workspace, folder: Path, *commands: list[str | Path]) -> None:
    """nnU-Net's own commands."""
    script = folder / "stock.py"
    script.write_text(COMMANDS)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps([list(map(str, command)) for command in commands])],
        env={**os.environ, **workspace.nnunet_environment(model="m1")},
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def ours(workspace: Workspace, output: str, members: Mapping[str, list[int]], steps: list[dict[str, Any]]) -> dict[str, bytes]:
    write_card(workspace.model_root("m1") / DATASET, members, postprocessing=steps)
    folder = Path(workspace.output_roots[0]) / output
    params = PredictParams(dataset=DATASET, cases="holdout", model="m1", output=str(folder))
    result = run(params, StepContext(workspace=workspace, job=job_dir(workspace), cpus=2))
    assert result["predicted"] == 2
    return segmentations(folder)


def test_real_cases_with_regions_give_the_bytes_of_the_stock_commands(workspace: Workspace, tmp_path: Path) -> None:
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation as largest

    recipe = tmp_path / "postprocessing.pkl"
    recipe.write_bytes(pickle.dumps(([largest], [LARGEST])))
    folder = workspace.model_root("m1") / DATASET / f"{TRAINER}__{PLANS}__2d_tiny"
    commands: list[list[str | Path]] = []
    for configuration in CONFIGURATIONS:
        predict: list[str | Path] = ["nnUNetv2_predict", "-i", workspace.raw_dataset(DATASET) / "imagesTs", "-d", DATASET]
        predict += ["-c", configuration, "-f", "0", "-device", "cpu", "-npp", "0", "-nps", "0"]
        # saving probabilities takes another path through nnU-Net's export, so each way is compared with its own
        commands += [
            [*predict, "-o", tmp_path / configuration],
            [*predict, "-o", tmp_path / f"{configuration}-soft", "--save_probabilities"],
        ]
    parts = [tmp_path / f"{configuration}-soft" for configuration in CONFIGURATIONS]
    commands += [
        ["nnUNetv2_ensemble", "-i", *parts, "-o", tmp_path / "mean", "-np", "1"],
        [
            "nnUNetv2_apply_postprocessing", "-i", tmp_path / "mean", "-o", tmp_path / "cleaned", "-pp_pkl_file", recipe,
            "-plans_json", folder / "plans.json", "-dataset_json", folder / "dataset.json", "-np", "1",
        ],
    ]  # fmt: skip
    stock(workspace, tmp_path, *commands)
    for configuration in CONFIGURATIONS:
        found = segmentations(tmp_path / configuration)
        assert len(found) == 2
        assert ours(workspace, f"{configuration}-{tmp_path.name}", {configuration: [0]}, []) == found
    steps = [{"function": largest.__name__, **LARGEST}]
    both = {configuration: [0] for configuration in CONFIGURATIONS}
    cleaned = segmentations(tmp_path / "cleaned")
    assert ours(workspace, f"both-{tmp_path.name}", both, steps) == cleaned
    assert cleaned != segmentations(tmp_path / "mean"), "postprocessing had something to remove"
