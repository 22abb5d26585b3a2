"""Prediction: the bytes of nnU-Net's own commands, broken cases isolated, work found again by content."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from devtools.testbed.prediction import PLANS, TRAINER, job_dir, preprocessed, save_random_folds, segmentations, write_card
from devtools.testbed.preprocessing import DATASET, PROJECT
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError, DataError, Interrupted
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.phantom import write_phantom
from nnunet_jobs.steps.predict import run
from support.foreign_warnings import FOREIGN_WARNINGS

pytestmark = FOREIGN_WARNINGS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Four training and three hold-out cases, and random weights for two folds of two configurations."""
    folder = tmp_path_factory.mktemp("predict")
    write_phantom(folder / "source", cases=7, seed=3)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "source" / "imagesTr").glob("*.nii.gz"))
    workspace = Workspace.below(folder / "work", input_roots=(str(folder),))
    version = preprocessed(workspace, folder / "source", names, holdout=names[4:])
    save_random_folds(workspace, version, model="m1", folds=[0, 1])
    return workspace


@pytest.fixture
def root(home: Workspace) -> Path:
    return home.model_root("m1") / DATASET


def context(workspace: Workspace, **values: Any) -> StepContext:
    return StepContext(workspace=workspace, job=job_dir(workspace), **{"cpus": 2, **values})


def predict(workspace: Workspace, output: str | Path, cases: Any = "holdout", *, stop: threading.Event | None = None, **params: Any) -> Any:
    where = output if isinstance(output, Path) else Path(workspace.output_roots[0]) / output
    values = {"stop": stop} if stop else {}
    return run(PredictParams(dataset=DATASET, cases=cases, output=str(where), **params), context(workspace, **values))


def stock(command: str, workspace: Workspace, *arguments: str | Path) -> None:
    """One of nnU-Net's own commands, with its folders pinned to the model."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command)), *map(str, arguments)],
        env={**os.environ, **workspace.nnunet_environment(model="m1")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def incoming(home: Workspace, tmp_path: Path, copies: int = 1) -> Path:
    """A folder of good images below an allowed root."""
    folder = Path(home.raw).parent.parent / f"incoming-{tmp_path.name}"
    folder.mkdir(exist_ok=True)
    sources = sorted((home.raw_dataset(DATASET) / "imagesTs").glob("*.nii.gz"))
    for copy in range(copies):
        for source in sources:
            shutil.copy(source, folder / f"c{copy:03d}_{source.name}")
    return folder


def test_an_ensemble_of_folds_and_configurations_gives_the_bytes_of_the_stock_commands(home: Workspace, root: Path, tmp_path: Path) -> None:
    steps = [{"function": "remove_all_but_largest_component_from_segmentation", "labels_or_regions": [1, 2]}]
    write_card(root, {"2d_tiny": [0, 1], "3d_tiny": [0]}, postprocessing=steps, promote=home)
    images = home.raw_dataset(DATASET) / "imagesTs"
    for configuration, folds in (("2d_tiny", ("0", "1")), ("3d_tiny", ("0",))):
        stock(
            "nnUNetv2_predict", home, "-i", images, "-o", tmp_path / configuration, "-d", DATASET, "-c", configuration, "-f", *folds,
            "-device", "cpu", "-npp", "1", "-nps", "1", "--save_probabilities",
        )  # fmt: skip
    stock("nnUNetv2_ensemble", home, "-i", tmp_path / "2d_tiny", tmp_path / "3d_tiny", "-o", tmp_path / "mean", "-np", "1")
    predict(home, "plain", postprocessing=False)
    assert segmentations(Path(home.output_roots[0]) / "plain") == segmentations(tmp_path / "mean")

    import pickle

    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation as largest

    recipe = tmp_path / "postprocessing.pkl"
    recipe.write_bytes(pickle.dumps(([largest], [{"labels_or_regions": [1, 2]}])))
    folder = root / f"{TRAINER}__{PLANS}__2d_tiny"
    stock(
        "nnUNetv2_apply_postprocessing", home, "-i", tmp_path / "mean", "-o", tmp_path / "cleaned", "-pp_pkl_file", recipe,
        "-plans_json", folder / "plans.json", "-dataset_json", folder / "dataset.json", "-np", "1",
    )  # fmt: skip
    result = predict(home, "cleaned")
    assert segmentations(Path(home.output_roots[0]) / "cleaned") == segmentations(tmp_path / "cleaned")
    assert result["predicted"] == 3
    assert result["dice"]["cases"] == 3


def test_one_fold_of_one_configuration_gives_the_bytes_of_the_stock_command(home: Workspace, root: Path, tmp_path: Path) -> None:
    write_card(root, {"2d_tiny": [0, 1]})
    stock(
        "nnUNetv2_predict", home, "-i", home.raw_dataset(DATASET) / "imagesTs", "-o", tmp_path / "stock", "-d", DATASET, "-c", "2d_tiny",
        "-f", "1", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta", "-step_size", "0.7",
    )  # fmt: skip
    predict(home, tmp_path.name, model="m1", folds=[1], mirroring=False, step_size=0.7)
    assert segmentations(Path(home.output_roots[0]) / tmp_path.name) == segmentations(tmp_path / "stock")


def test_fault_42_broken_cases_are_reported_and_the_others_predicted(home: Workspace, root: Path, tmp_path: Path) -> None:
    import nibabel as nib
    import numpy as np

    write_card(root, {"2d_tiny": [0]}, promote=home)
    folder = incoming(home, tmp_path, copies=10)
    names = sorted(folder.glob("*.nii.gz"))
    content = names[3].read_bytes()
    names[3].write_bytes(content[: len(content) // 2])
    names[5].write_bytes(b"")
    names[6].write_bytes(b"not an image")
    image = nib.load(names[8])
    array = np.asarray(image.dataobj, dtype=np.float32).copy()
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, image.affine), names[8])
    names[9].rename(folder / names[9].name.replace("_0000", "_0001"))
    result = predict(home, tmp_path.name, str(folder))
    broken = {names[index].name.removesuffix("_0000.nii.gz") for index in (3, 5, 6, 8, 9)}
    assert {item["case"] for item in result["failed"]} == broken
    assert result["predicted"] == 25
    reasons = {item["case"]: item["reason"] for item in result["failed"]}
    assert "truncated" in reasons[names[3].name.removesuffix("_0000.nii.gz")]
    assert "NaN" in reasons[names[8].name.removesuffix("_0000.nii.gz")]
    cases = read_json(Path(result["predictions"]))["cases"]
    assert {case for case, entry in cases.items() if entry["status"] == "failed"} == broken
    good = next(entry for entry in cases.values() if entry["status"] == "predicted")
    assert set(good["volumes_ml"]) == {"anterior", "posterior"}
    assert not (Path(result["output"]) / next(iter(broken))).with_suffix(".nii.gz").exists()


def test_a_folder_without_one_good_case_fails_as_data_with_every_fault(home: Workspace, root: Path, tmp_path: Path) -> None:
    write_card(root, {"2d_tiny": [0]}, promote=home)
    folder = incoming(home, tmp_path)
    for path in folder.glob("*.nii.gz"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="none of 3 cases") as raised:
        predict(home, tmp_path.name, str(folder))
    assert len(raised.value.faults) == 3


def test_work_is_found_again_by_content(home: Workspace, root: Path, tmp_path: Path) -> None:
    write_card(root, {"2d_tiny": [0]}, promote=home)
    first = predict(home, tmp_path.name)
    assert (first["predicted"], first["already_done"]) == (3, 0)
    again = predict(home, tmp_path.name)
    assert (again["predicted"], again["already_done"]) == (0, 3)
    output = Path(first["output"])
    damaged, cut = sorted(output.glob("*.nii.gz"))[:2]
    before = damaged.read_bytes(), cut.read_bytes()
    damaged.write_bytes(before[0][:-1] + bytes([before[0][-1] ^ 1]))
    cut.write_bytes(before[1][:100])  # what a killed stock command leaves behind
    mended = predict(home, tmp_path.name)
    assert (mended["predicted"], mended["already_done"]) == (2, 1)
    assert (damaged.read_bytes(), cut.read_bytes()) == before
    assert predict(home, tmp_path.name, overwrite=True)["predicted"] == 3
    write_card(root, {"2d_tiny": [0, 1]}, promote=home)
    assert predict(home, tmp_path.name)["predicted"] == 3  # another model


def test_parts_write_into_one_folder_at_once(home: Workspace, root: Path, tmp_path: Path) -> None:
    write_card(root, {"2d_tiny": [0]}, promote=home)
    folder = incoming(home, tmp_path, copies=3)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda part: predict(home, tmp_path.name, str(folder), part=part, parts=4), range(4)))
    assert sorted(result["predicted"] for result in results) == [2, 2, 2, 3]
    merged = read_json(Path(results[0]["predictions"]))
    assert merged["predicted"] == 9
    assert len(merged["cases"]) == 9


KILLED = """
import json, sys
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.steps.predict import run
from devtools.testbed.prediction import job_dir
request = json.loads(sys.argv[1])
workspace = Workspace.from_json(request["workspace"])
print("ready", flush=True)
run(PredictParams.from_json(request["params"]), StepContext(workspace=workspace, job=job_dir(workspace, "predict-killed00"), cpus=1))
"""


def test_fault_43_a_half_written_prediction_is_not_taken_for_done(home: Workspace, root: Path, tmp_path: Path) -> None:
    write_card(root, {"2d_tiny": [0]}, promote=home)
    folder = incoming(home, tmp_path, copies=6)
    output = Path(home.output_roots[0]) / tmp_path.name
    params = {"dataset": DATASET, "cases": str(folder), "output": str(output)}
    request = json.dumps({"workspace": home.to_json(), "params": params})
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, request],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT / "plugins"), str(PROJECT)])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(output.glob("*.nii.gz"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = segmentations(output)
    (output / "c005_leftover.nii.gz").write_bytes(b"half")
    result = predict(home, tmp_path.name, str(folder))
    assert result["predicted"] + result["already_done"] == 18
    assert 1 <= result["already_done"] <= len(written)
    assert {name: data for name, data in segmentations(output).items() if name in written} == written
    assert not list(output.glob("models/*/.cases/*.partial/*"))


def test_a_stop_request_ends_between_windows_and_keeps_finished_cases(home: Workspace, root: Path, tmp_path: Path) -> None:
    write_card(root, {"2d_tiny": [0]}, promote=home)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        predict(home, tmp_path.name, stop=stop)
    assert predict(home, tmp_path.name)["predicted"] == 3


def test_a_damaged_model_is_refused(home: Workspace, root: Path, tmp_path: Path) -> None:
    card = write_card(root, {"2d_tiny": [0]}, promote=home)
    name = next(name for name in card["files"] if name.endswith(".pth"))
    path = root / name
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-2] + b"xx")
        with pytest.raises(DataError, match="differs from what the card"):
            predict(home, tmp_path.name)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cases": "/etc"}, "outside the allowed folders"),
        ({"cases": []}, "set on_empty to skip"),
        ({"cases": ["/etc/passwd", "/etc/passwd"]}, "more than once"),
        ({"cases": [{"case": "../up", "images": ["/x"]}]}, "becomes a file name"),
        ({"output": "/etc/out"}, "output_roots"),
        ({"folds": [7]}, "has folds \\[0\\]"),
        ({"model": "nope"}, "run FindBestConfigOperator"),
    ],
)
def test_wrong_requests_name_the_mend(home: Workspace, root: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_card(root, {"2d_tiny": [0]}, promote=home)
    fields = {"cases": "holdout", "output": Path(home.output_roots[0]) / tmp_path.name, **change}
    with pytest.raises(ConfigError, match=said):
        predict(home, Path(fields.pop("output")), **fields)


def test_without_a_promoted_model_the_selected_ones_are_named(home: Workspace, root: Path, tmp_path: Path) -> None:
    write_card(root, {"2d_tiny": [0]})
    home.champion_link(DATASET).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="selected ones: m1"):
        predict(home, tmp_path.name)


def test_a_payload_in_a_checkpoint_is_never_run(home: Workspace, root: Path, tmp_path: Path) -> None:
    import torch

    class Payload:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "executed"),))

    path = root / f"{TRAINER}__{PLANS}__2d_tiny" / "fold_0" / "checkpoint_final.pth"
    content = path.read_bytes()
    try:
        torch.save({"network_weights": {}, "payload": Payload()}, path)
        write_card(root, {"2d_tiny": [0]}, promote=home)
        with pytest.raises(DataError, match="more than tensors"):
            predict(home, tmp_path.name)
        assert not (tmp_path / "executed").exists()
    finally:
        path.write_bytes(content)
        write_json(root / "model.json", {})
