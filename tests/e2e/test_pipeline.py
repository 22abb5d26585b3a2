"""The whole pipeline under a real scheduler."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from airflow_nnunet.prediction_api.rest_client import wait_until
from support.private import open_to_others
from support.stack import DATASET, Site

pytestmark = [pytest.mark.e2e, pytest.mark.training]
DAG = "nnunet_phantom"
STEPS = ("register", "preprocess", "train", "find_best", "predict")


def test_a_folder_of_scans_becomes_a_promoted_model_and_predictions(site: Site) -> None:
    client = site.stack.client
    client.wait_for_dag(DAG)
    run_id = client.trigger(DAG)
    state = client.wait_for_run(DAG, run_id, timeout_s=400)
    states = client.states(DAG, run_id)
    assert state == "success", states
    runs = client.request("GET", f"dags/{DAG}/dagRuns")["dag_runs"]
    assert [run["dag_run_id"] for run in runs] == [run_id], "unpausing has started no run for the time that was missed"
    assert set(states.values()) == {"success"}
    trainings = [site.job(DAG, run_id, "train", map_index=index) for index in (0, 1)]
    spans = sorted((lines[0]["t"], lines[-1]["t"]) for lines in (job.read_metrics()[0] for job in trainings))
    for (_, end), (begin, _) in itertools.pairwise(spans):
        assert end <= begin, "the pool has one slot, so one training at once"
    best = client.xcom(DAG, run_id, "find_best")
    assert best["promoted"]
    assert site.workspace.champion(DATASET) == best["model"]
    card = json.loads((site.workspace.champion_link(DATASET) / "model.json").read_text())
    assert card["recipe"]
    predictions = json.loads(Path(client.xcom(DAG, run_id, "predict", map_index=0)["predictions"]).read_text())
    held_out = {case for case, entry in site.workspace.manifest(DATASET)["cases"].items() if entry["split"] == "holdout"}
    assert held_out
    assert set(predictions["cases"]) == held_out
    assert {entry["status"] for entry in predictions["cases"].values()} == {"predicted"}


def test_fault_77_after_a_whole_run_nothing_of_patients_is_readable_for_others(site: Site) -> None:
    """The run of the test before: raw copies, arrays, models, jobs and predictions, whoever wrote them, with the default settings."""
    assert site.workspace.sharing == "private"
    workspace = site.workspace
    version, model = workspace.current_version(DATASET), workspace.champion(DATASET)
    assert version
    assert model
    # What the run has made: other tests of this site make files of their own beside it, with the umask of a person.
    roots = [workspace.raw_dataset(DATASET), workspace.preprocessed_root(version), workspace.model_root(model)]
    roots += [Path(workspace.jobs), Path(workspace.output_roots[0]) / DATASET]
    assert all(root.is_dir() for root in roots)
    assert open_to_others(*roots) == []


def test_a_run_with_nothing_new_skips(site: Site) -> None:
    client = site.stack.client
    run_id = client.trigger(DAG)
    assert client.wait_for_run(DAG, run_id, timeout_s=120) == "success"
    states = {task: state for (task, _), state in client.states(DAG, run_id).items()}
    assert {task: states[task] for task in STEPS} == {
        "register": "success", "preprocess": "skipped", "train": "skipped", "find_best": "skipped", "predict": "skipped",
    }  # fmt: skip


def test_a_broken_dataset_file_is_shown_and_leaves_the_others_alone(site: Site) -> None:
    client = site.stack.client
    client.wait_for_dag(DAG)
    parsed = client.request("GET", f"dags/{DAG}")["last_parsed_time"]
    broken = site.datasets / "broken.yaml"
    broken.write_text("dataset: {id: 5, name: Other, source: /data}\ntrain: {epoch: 3}\n")
    refused = site.datasets / "refused.yaml"
    refused.write_text("dataset: {id: 6, name: Another, source: /data}\nschedule: '61 * * * *'\n")
    site.parse_again()
    try:
        wait_until(lambda: bool(client.import_errors()), timeout_s=60, what=lambda: "no import error appeared")
        errors = client.import_errors()
        assert list(errors) == ["nnunet_dataset_files.py"]
        assert "broken.yaml:2: train.epoch: unknown field; did you mean 'epochs'?" in errors["nnunet_dataset_files.py"]
        assert "refused.yaml:2: schedule='61 * * * *': not a cron expression" in errors["nnunet_dataset_files.py"]
        wait_until(
            lambda: client.request("GET", f"dags/{DAG}")["last_parsed_time"] != parsed, timeout_s=60, what=lambda: f"{DAG} not parsed again"
        )
        shown = client.request("GET", f"dags/{DAG}")
        assert not shown["is_stale"]
        assert not shown["has_import_errors"]
    finally:
        broken.unlink()
        refused.unlink()
    site.parse_again()
    wait_until(lambda: not client.import_errors(), timeout_s=60, what=lambda: f"still there: {client.import_errors()}")
