"""A run of a dataset's DAG through Airflow itself, with jobs that only pretend: what the form says reaches every task."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from nnunet_jobs.contract.storage.files import read_json
from support.airflow import environment, run

DAG = """
from airflow_nnunet.pipelines.dag_builder import build_training_dag
from airflow_nnunet.pipelines.dataset_config import TrainingConfig

dag = build_training_dag(TrainingConfig.model_validate({
    "dag_id": "whole",
    "dataset": {"id": 4, "name": "Hip", "source": "/in"},
    "preprocess": {"configurations": ["2d", "3d_lowres", "3d_cascade_fullres"]},
    "train": {"epochs": 9},
    "predict": {"cases": "none"},
}))

if __name__ == "__main__":
    print("state", dag.test(run_conf={"folds": ["1", "all"], "epochs": 3, "configurations": ["2d"], "promote": "never"}).state)
"""


def test_the_form_is_read_once_and_every_task_gets_what_it_said(home: Path) -> None:
    file = home / "dags" / "whole.py"
    file.write_text(DAG)
    done = run([file], environment(home, backend="fake", workspace=str(home / "work")))
    said = done.stdout + done.stderr
    assert "state success" in done.stdout, said[-6000:]
    with sqlite3.connect(home / "airflow.db") as database:
        states = dict(database.execute("select task_id || ' ' || map_index, state from task_instance").fetchall())
        (value,) = database.execute("select value from xcom where task_id = 'run_settings' and key = 'return_value'").fetchone()
    specs = [read_json(path) for path in (home / "work" / "jobs").glob("*/spec.json")]
    jobs = [{**spec["params"], "step": spec["step"]} for spec in specs]
    trained = sorted((job["configuration"], str(job["fold"]), job["epochs"]) for job in jobs if job["step"] == "train")
    assert trained == [("2d", "1", 3), ("2d", "all", 3)]
    (selected,) = (job for job in jobs if job["step"] == "find_best_config")
    assert (selected["folds"], selected["configurations"], selected["promote"]) == ([1], ["2d"], "never")
    settings = json.loads(value)
    assert (settings["folds"], settings["train"]["epochs"], settings["predict"]) == ([1, "all"], 3, "none")
    assert states["run_settings -1"] == states["plan_predictions -1"] == states["find_best -1"] == "success"
    assert {state for task, state in states.items() if task.startswith(("train_cascade", "predict "))} == {"skipped"}
