"""Files of version 0.1 are read as they are, and so are files to which a later version has added fields.

``tests/fixtures/v0_1`` is what version 0.1 wrote for a small phantom dataset, with ``/data`` for the folder. It is never written anew.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.backends import get_backend
from airflow_nnunet.backends.base import Watch
from airflow_nnunet.dicomweb import ledger, retrieve, store
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.job.usage import read_attempt_usage, read_usage
from nnunet_jobs.contract.steps.results import RESULTS
from nnunet_jobs.contract.storage.files import SCHEMA, content_hash, read_json, sha256_file
from nnunet_jobs.contract.storage.marker import open_workspace, read_marker
from nnunet_jobs.contract.storage.predictions import read_predictions
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.manifest import HashCache
from nnunet_jobs.dicom.identity import Identity, Person
from nnunet_jobs.prediction.records import Records, read_left_out
from nnunet_jobs.preprocessing.version import published
from nnunet_jobs.training import fold, validation
from support.jobs import make_spec

OLD = Path(__file__).parents[3] / "fixtures" / "v0_1"
DATASET, VERSION, MODEL = "Dataset990_Phantom", "a48add0aca1af469", "e8fe3a6552e14668"
LATER = {"schema": SCHEMA, "added_later": {"colour": "red"}}


@pytest.fixture(params=["as 0.1 wrote it", "with fields of a later version"])
def work(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The old workspace at another place. Only its names of folders differ."""
    for path in OLD.rglob("*"):
        if path.is_dir():
            continue
        target = tmp_path / path.relative_to(OLD)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text().replace("/data/", f"{tmp_path}/")
        target.write_text(text if request.param.startswith("as") else _later(path, text))
    (tmp_path / "leases").mkdir()
    return tmp_path / "work"


def _later(path: Path, text: str) -> str:
    if path.suffix == ".jsonl":
        return "".join(json.dumps({**json.loads(line), **LATER}) + "\n" for line in text.splitlines())
    data: dict[str, Any] = json.loads(text)
    if path.parent.name == "stored":
        data = {"files": data}
    if path.name == "spec.json":
        for name in ("workspace", "resources"):
            data[name] = {**data[name], **LATER}
    return json.dumps({**data, **LATER})


def jobs(work: Path) -> dict[str, JobDir]:
    """The finished jobs by step."""
    found = [JobDir(path.parent) for path in (work / "jobs").glob("*/result.json")]
    return {job.spec().step: job for job in found}


ADDED = {"decision", "reason", "champion_before", "gain", "expected_gain", "compared_cases"}
"""Keys of results that later versions added."""


def workspace_of(work: Path) -> Workspace:
    return jobs(work)["train"].spec().workspace


def test_job_directories(work: Path) -> None:
    found = jobs(work)
    assert sorted(found) == ["find_best_config", "predict", "preprocess", "register", "train"]
    for job in found.values():
        job.spec().step_params()
        assert job.state().phase is Phase.DONE
        result = job.result()
        assert result is not None
        assert result["attempt"] == 1
        assert "schema" not in result
        step_result = RESULTS[job.spec().step].from_json(result["result"]).to_json()
        assert {name: step_result[name] for name in result["result"]} == result["result"]
        assert set(step_result) - set(result["result"]) <= ADDED, "a key that version 0.1 did not write has a default"
        assert job.failure() is None
        usage = read_attempt_usage(job, 1)
        assert usage is not None
        assert usage.outcome == "done"
    assert found["train"].result()["result"]["model"] == MODEL  # type: ignore[index]


def test_a_failure_and_a_wish_to_cancel(work: Path) -> None:
    (path,) = (work / "jobs").glob("*/failure.json")
    job = JobDir(path.parent)
    failure = job.failure()
    assert failure is not None
    error = failure.to_error()
    assert isinstance(error, ConfigError)
    assert str(error) == "configuration='2d_none': not in nnUNetPlans, which has: 2d, 3d_fullres, 2d_tiny"
    assert error.parts == {}
    assert job.cancel_requested() == "marked failed"


def test_markers_and_usage(work: Path) -> None:
    space = workspace_of(work)
    before = read_marker(space.jobs)
    open_workspace(space)
    assert before == read_marker(space.jobs), "the workspace is known, and not marked anew"
    usages, damaged = read_usage(space.jobs, since=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    assert damaged == 0
    assert {usage.step for usage in usages} == {"register", "preprocess", "train", "find_best_config", "predict"}


def test_what_the_steps_have_made(work: Path) -> None:
    space = workspace_of(work)
    assert space.resolve_dataset(990) == DATASET
    (version,) = published(space, DATASET)
    assert version.name == VERSION
    ((model, card),) = space.model_cards(DATASET)
    assert (model, card["version"]) == (MODEL, VERSION)
    (folder,) = (work / "predictions" / DATASET / "holdout" / "models").iterdir()
    predictions = read_predictions(folder)
    assert predictions["model"] == MODEL
    assert set(predictions["cases"]) == {"phantom_003", "phantom_005", "phantom_008", "phantom_019"}
    record = Records(folder)._read("phantom_003")
    assert record is not None
    assert record["status"] == "predicted"


def test_notes_of_the_archive(work: Path) -> None:
    (notes,) = ledger.ledgers(work / "jobs")
    assert [(entry.study, entry.state) for entry in notes.read().values()] == [("1.2.3", "out")]
    journal = retrieve._Journal(work.parent / "study")
    assert journal._known == {"aa/bb.dcm": "0" * 64}
    assert store._confirmed(work.parent / "stored" / "archive.json") == {"case.dcm": "0" * 64}


def test_content_hashes_stay_so_that_finished_work_is_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = workspace_of(work)
    settings = read_json(space.model_root(MODEL) / DATASET / fold.SETTINGS_RECORD)
    monkeypatch.setattr(fold, "installed_version", lambda _: settings["nnunetv2"])
    params = jobs(work)["train"].spec().step_params()
    assert fold.model_id(params, VERSION) == MODEL  # type: ignore[arg-type]
    assert fold.model_settings(params, VERSION).keys() == settings.keys() - {"torch", *LATER}  # type: ignore[arg-type]
    ((_, card),) = space.model_cards(DATASET)
    assert content_hash({"selection": card["selection"], "files": card["files"]}, length=32) == card["hash"]


def test_a_validation_of_this_checkpoint_is_kept(work: Path) -> None:
    (mark,) = work.rglob(".validated.json")
    folder = mark.parent
    checkpoint = folder.parent / validation.FINAL
    checkpoint.write_bytes(b"another checkpoint")
    mark.write_text(json.dumps({**read_json(mark), "checkpoint": sha256_file(checkpoint)}))
    before = mark.read_bytes()
    (folder / "unlisted.nii.gz").write_bytes(b"")
    validation._prepare(folder, ["unlisted"], ".nii.gz", fold=0)
    assert (folder / "unlisted.nii.gz").exists()
    assert mark.read_bytes() == before, "fold.json may list it with its hash"


def test_lists_of_files_that_are_no_cases_and_the_mapping_of_patients(tmp_path: Path) -> None:
    left_out = [{"name": "notes.txt", "reason": "no image"}]
    for data in (left_out, {"cases": left_out, **LATER}):
        (tmp_path / "list.json").write_text(json.dumps(data))
        assert read_left_out(tmp_path / "list.json") == left_out
    person = {"case": "c", "group": "g", "patient": "p", "study": "1.2", "series": ["1.2.3"]}
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    for line in (person, {**person, **LATER}):
        (folder / f"{DATASET}.jsonl").write_text(json.dumps(line) + "\n")
        assert Identity(folder).mapping(DATASET) == {"c": Person(**{**person, "series": ("1.2.3",)})}  # type: ignore[arg-type]


def test_the_fixture_is_what_version_0_1_wrote() -> None:
    """So that nobody makes it anew with a version that writes ``schema`` into these files."""
    names = ("spec.json", "state.json", "result.json", "failure.json", "usage.1.json", "cancel", ".nnunet-workspace", "settings.json")
    for path in OLD.rglob("*"):
        if path.name in names:
            assert "schema" not in read_json(path), path


def test_new_files_say_their_schema(workspace: Workspace) -> None:
    backend = get_backend("fake")
    job = backend.submit(make_spec(workspace, "schema"))
    while not backend.status(job, Watch()).phase.final:
        pass
    job.request_cancel("too late")
    files = [*job.path.glob("*.json"), job.cancel_path, Path(workspace.jobs) / ".nnunet-workspace"]
    assert {path.name for path in files} >= {"spec.json", "state.json", "result.json"}
    assert {path.name: read_json(path).get("schema") for path in files} == {path.name: SCHEMA for path in files}


def test_a_cache_of_hashes_of_another_form_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text(json.dumps({"schema": 99, "files": {"a": [1]}}))
    assert HashCache(tmp_path / "cache.json")._known == {}
