"""A cascade: the low-resolution stage runs first and its segmentation is the second stage's input, as with the stock commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.testbed.prediction import PLANS, TRAINER, job_dir
from devtools.testbed.stages import DATASET, FULL, LOW, save_stage
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.model import selection_hash
from nnunet_jobs.selection.commands import commands
from nnunet_jobs.steps.predict import run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_a_cascade_gives_the_bytes_of_the_commands_in_its_card(workspace: Workspace, tmp_path: Path) -> None:
    import nibabel as nib

    from nnunet_jobs.dataset.phantom import phantom_case

    workspace.raw_dataset(DATASET).mkdir(parents=True)
    images = tmp_path / "images"
    images.mkdir()
    voxels, _, affine = phantom_case(5, 0)
    nib.save(nib.Nifti1Image(voxels, affine), images / "case_0000.nii.gz")
    root = workspace.model_root("m1") / DATASET
    files = {**save_stage(root, LOW, seed=1), **save_stage(root, FULL, seed=2)}
    stage = {"trainer": TRAINER, "plans": PLANS, "folds": [0]}
    member = {**stage, "configuration": FULL, "previous_stage": {**stage, "configuration": LOW}}
    selection = {"members": [member], "postprocessing": []}
    card = {"schema": 1, "dataset": DATASET, "model": "m1", "selection": selection, "files": files}
    write_json(root / "model.json", {**card, "hash": selection_hash(selection, files)})

    places = {"{input}": str(images), "{output}": str(tmp_path / "stock"), "{work}": str(tmp_path / "between"), "{model}": str(root)}
    listed = commands(DATASET, selection)
    assert [argv[0] for argv in listed] == ["nnUNetv2_predict"] * 2
    for argv in listed:
        for place, path in places.items():
            argv = [part.replace(place, path) for part in argv]
        done = subprocess.run(
            [str(Path(sys.executable).with_name(argv[0])), *argv[1:], "-device", "cpu", "-npp", "1", "-nps", "1"],
            env={**os.environ, **workspace.nnunet_environment(model="m1")},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    output = Path(workspace.output_roots[0]) / "ours"
    params = PredictParams(dataset=DATASET, cases=str(images), output=str(output), model="m1")
    result = run(params, StepContext(workspace=workspace, job=job_dir(workspace), cpus=2))
    assert (result["predicted"], result["failed"]) == (1, [])
    assert (output / "case.nii.gz").read_bytes() == (tmp_path / "stock" / "case.nii.gz").read_bytes()
    low = nib.load(tmp_path / "between" / "previous_stage" / "case.nii.gz")
    assert len(set(low.get_fdata().ravel())) > 1, "the first stage must have found something for this to mean anything"
