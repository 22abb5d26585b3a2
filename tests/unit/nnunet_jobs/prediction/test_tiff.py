"""3D TIFF has no place for the spacing: nnU-Net keeps it in a JSON file beside each image, which predictions and validations keep too."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from devtools.testbed.serving import make_workspace
from devtools.testbed.stages import DATASET, DESCRIPTION, LOW, plans
from nnunet_jobs.contract.storage.files import read_json, sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.model import selection_hash
from nnunet_jobs.training import validation
from support.batches import predict, reasons
from support.foreign_warnings import FOREIGN_WARNINGS

pytestmark = FOREIGN_WARNINGS
SPACING = [3.0, 1.5, 1.0]
STEPS = [{"function": "remove_all_but_largest_component_from_segmentation", "labels_or_regions": [1, 2]}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A promoted model of 3D TIFF images, which keeps the largest component."""
    workspace = make_workspace(tmp_path_factory.mktemp("tiff") / "work")
    root = workspace.model_root("m1") / DATASET
    card = read_json(root / "model.json")
    [folder] = root.glob("*__*")
    write_json(folder / "plans.json", {**plans(), "image_reader_writer": "Tiff3DIO"})
    write_json(folder / "dataset.json", {**DESCRIPTION, "file_ending": ".tif"})
    files = {name: sha256_file(root / name) for name in card["files"]}
    selection = {**card["selection"], "postprocessing": STEPS}
    write_json(root / "model.json", {**card, "selection": selection, "files": files, "hash": selection_hash(selection, files)})
    return workspace


def write_tiff(folder: Path, case: str) -> None:
    import tifffile

    voxels = np.random.default_rng(0).integers(0, 900, (18, 24, 20)).astype(np.uint16)
    tifffile.imwrite(folder / f"{case}_0000.tif", voxels)
    (folder / f"{case}.json").write_text(json.dumps({"spacing": SPACING}))


def test_a_prediction_keeps_the_spacing_beside_it(home: Workspace, tmp_path: Path) -> None:
    folder = Path(home.input_roots[0]) / tmp_path.name
    folder.mkdir()
    for case in ("a", "predictions"):
        write_tiff(folder, case)
    result = predict(home, folder, tmp_path.name)
    output = Path(result["output"])
    assert read_json(output / "a.json") == {"spacing": SPACING}
    assert read_json(output.parent.parent / "a.json") == {"spacing": SPACING}
    assert set(read_json(output / ".cases" / "a.json")["files"]) == {"a.json", "a.tif"}
    assert "has the name of the list of all predictions" in reasons(result)["predictions"]
    (output / "a.json").unlink()
    assert predict(home, folder, tmp_path.name)["predicted"] == 1
    assert read_json(output / "a.json") == {"spacing": SPACING}


def test_a_validation_keeps_the_spacing_beside_it(tmp_path: Path) -> None:
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager({**plans(), "image_reader_writer": "Tiff3DIO"})
    trainer: Any = SimpleNamespace(
        plans_manager=manager,
        configuration_manager=manager.get_configuration(LOW),
        dataset_json={**DESCRIPTION, "file_ending": ".tif"},
        output_folder_base=tmp_path,
    )
    folder, staging = tmp_path / "fold_0" / "validation", tmp_path / "fold_0" / "staging"
    staging.mkdir(parents=True)
    (folder.parent / "checkpoint_final.pth").write_bytes(b"weights")
    validation._prepare(folder, ["a"], ".tif", fold=0)
    shape = (8, 12, 10)
    properties = {
        "spacing": [2.0, 2.0, 2.0],
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, size] for size in shape],
    }
    assert not validation._predicted(trainer, folder, "a", npz=False, stages=())
    validation._export(trainer, torch.zeros((3, *shape)), properties, "a", staging, folder, False, (), 1)
    assert read_json(folder / "a.json") == {"spacing": [2.0, 2.0, 2.0]}
    validation._prepare(folder, ["a"], ".tif", fold=0)  # as the next attempt does
    assert validation._predicted(trainer, folder, "a", npz=False, stages=())
    (folder / "a.json").unlink()
    assert not validation._predicted(trainer, folder, "a", npz=False, stages=())
