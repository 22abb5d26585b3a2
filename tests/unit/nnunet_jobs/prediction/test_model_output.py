"""Predictions of several models in one output folder: each model's are kept, links show the newest run's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airflow_nnunet.dicomweb.store import find_files
from devtools.testbed.serving import make_model, make_workspace
from devtools.testbed.stages import DATASET
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec, Resources
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.storage.files import read_json, repoint, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.model_output import ModelOutput
from nnunet_jobs.prediction.withdraw import predictions_of, remove
from nnunet_jobs.steps.predict import run
from support.batches import make_small_cases, params, predict
from support.foreign_warnings import FOREIGN_WARNINGS

pytestmark = FOREIGN_WARNINGS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two selected models, of which ``m1`` is promoted."""
    workspace = make_workspace(tmp_path_factory.mktemp("kept") / "work")
    make_model(workspace, "m2", seed=2, promote=False)
    return workspace


@pytest.fixture
def incoming(home: Workspace, tmp_path: Path) -> Path:
    folder = Path(home.input_roots[0]) / tmp_path.name
    make_small_cases(folder, 3)
    return folder


def whole(folder: Path) -> dict[str, bytes]:
    """The segmentations that a folder shows."""
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def test_a_later_models_predictions_leave_the_earlier_ones_and_the_link_shows_the_newest(
    home: Workspace, incoming: Path, tmp_path: Path
) -> None:
    output = Path(home.output_roots[0]) / tmp_path.name
    first = predict(home, incoming, tmp_path.name, model="m1")
    earlier = whole(Path(first["output"]))
    assert set(earlier) == {"c0000.nii.gz", "c0001.nii.gz", "c0002.nii.gz"}
    assert whole(output) == earlier
    (incoming / "c0002_0000.nii.gz").unlink()
    second = predict(home, incoming, tmp_path.name, model="m2")
    assert (second["predicted"], second["already_done"]) == (2, 0)
    assert whole(Path(first["output"])) == earlier
    later = whole(Path(second["output"]))
    assert len(later) == 2
    assert all(later[name] != earlier[name] for name in later), "two networks of other weights"
    assert whole(output) == later, "a case that the newest model has not predicted is not shown as its own"
    assert (output / "newest").resolve() == Path(second["output"]).resolve()
    assert read_json(output / "predictions.json")["model"] == "m2"
    assert read_json(Path(first["predictions"]))["model"] == "m1"

    again = predict(home, incoming, tmp_path.name, model="m1")  # after a rollback, say
    assert (again["predicted"], again["already_done"]) == (0, 2)
    assert whole(output) == earlier
    assert read_json(output / "predictions.json")["model"] == "m1"
    assert not [path for path in output.iterdir() if path.is_symlink() and not path.exists()]


def test_a_selection_made_anew_is_another_model(home: Workspace, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert ModelOutput(output, "m1", "aaaaaaaa11").folder != ModelOutput(output, "m1", "bbbbbbbb11").folder


def test_what_lay_in_the_folder_before_is_kept(home: Workspace, incoming: Path, tmp_path: Path) -> None:
    output = Path(home.output_roots[0]) / tmp_path.name
    (output / ".cases").mkdir(parents=True)
    (output / "c0000.nii.gz").write_bytes(b"of an earlier model")
    record = {"status": "predicted", "file": "c0000.nii.gz", "files": {"c0000.nii.gz": "?"}, "model": "m0", "model_hash": "0123456789"}
    write_json(output / ".cases" / "c0000.json", {"schema": 1, "case": "c0000", **record})
    write_json(output / "predictions.json", {"dataset": DATASET, "model": "m0", "model_hash": "0123456789", "cases": {"c0000": record}})
    (output / "c0001.nii.gz").write_bytes(b"of nnU-Net's own command")
    result = predict(home, incoming, tmp_path.name)
    assert result["predicted"] == 3
    kept = output / "models" / "m0-01234567"
    assert (kept / "c0000.nii.gz").read_bytes() == b"of an earlier model"
    assert read_json(kept / "predictions.json")["predicted"] == 1
    assert (output / "models" / "others" / "c0001.nii.gz").read_bytes() == b"of nnU-Net's own command"
    assert whole(output) == whole(Path(result["output"]))
    found = predictions_of(home, DATASET, ["c0000", "c0001"])
    for folder in found:
        remove(folder)
    assert not [path for path in output.rglob("*") if path.name.startswith(("c0000", "c0001"))]


def test_all_parts_of_a_run_use_one_model_although_another_is_promoted_meanwhile(home: Workspace, incoming: Path, tmp_path: Path) -> None:
    def part(number: int, run_id: str) -> dict:
        labels = {"dag_id": "nightly", "run_id": run_id, "task_id": "predict", "map_index": str(number)}
        fields = PredictParams.from_json(params(home, incoming, tmp_path.name, part=number, parts=2))
        spec = JobSpec(
            job_id=f"predict-{run_id}{number:07d}",
            step="predict",
            params=fields.to_json(),
            workspace=home,
            resources=Resources(),
            labels=labels,
        )
        return run(fields, StepContext(workspace=home, job=JobDir.create(spec), cpus=2))

    try:
        first = part(0, "a")
        repoint(home.champion_link(DATASET), home.model_root("m2") / DATASET)
        second = part(1, "a")
        assert first["model"] == second["model"] == "m1"
        assert first["predicted"] + second["predicted"] == 3
        assert part(0, "b")["model"] == "m2"
    finally:
        repoint(home.champion_link(DATASET), home.model_root("m1") / DATASET)


def test_only_the_newest_models_dicom_results_go_to_an_archive(tmp_path: Path) -> None:
    output = tmp_path / "incoming" / "night"
    for model in ("m1", "m2"):
        model_output = ModelOutput(output, model, "0123456789")
        (model_output.folder / "a.seg.dcm").write_bytes(model.encode())
        model_output.show_all()
    assert [path.read_bytes() for path in find_files(output)] == [b"m2"]
    assert [path.read_bytes() for path in find_files(tmp_path)] == [b"m2"]
    assert [path.read_bytes() for path in find_files(output / "models" / "m1-01234567")] == [b"m1"], "named by its own folder"


def test_without_symbolic_links_the_predictions_are_whole_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object, **_more: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # as CIFS and exFAT answer

    monkeypatch.setattr(os, "symlink", refused)
    model_output = ModelOutput(tmp_path, "m1", "0123456789")
    (model_output.folder / "a.nii.gz").write_bytes(b"whole")
    model_output.show_case(["a.nii.gz"])
    model_output.show_all()
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
