"""Templates that cannot be rendered: the task fails once, as ``config``, and says what to write."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from support.airflow import environment, run

DAG = """
from airflow.sdk import DAG, XComArg
from airflow_nnunet.pipelines.dag_builder import training_task_group
from airflow_nnunet.pipelines.dataset_config import TrainingConfig
from airflow_nnunet.dicomweb import DicomWebStoreOperator
from airflow_nnunet.operators import BatchPredictOperator, RegisterDatasetOperator

COMMON = {"dataset": 4, "output_folder": "/out", "trigger_rule": "all_done"}

with DAG("templates", schedule=None, params={"nnunet.folds": 9, "none": None}) as dag:
    of_the_day = BatchPredictOperator(task_id="of_the_day", cases="/in/{{ ds }}", **COMMON)
    BatchPredictOperator(task_id="syntax", cases="/in/{{ dag_run", **COMMON)
    BatchPredictOperator(task_id="nobody", cases="{{ ti.xcom_pull(task_ids='nobody')['folder'] }}", **COMMON)
    BatchPredictOperator(task_id="of_a_failed_one", cases=of_the_day.output["output"], **COMMON)
    BatchPredictOperator(task_id="arithmetic", cases="holdout", parts="{{ params.none + 1 }}", **COMMON)
    BatchPredictOperator.partial(task_id="mapped", cases="/in/{{ ts }}", parts=2, **COMMON).expand(part=[0, 1])
    DicomWebStoreOperator(task_id="store", folder="/out/{{ logical_date }}")
    BatchPredictOperator(task_id="good", cases="/in/{{ dag_run.run_after | ds }}", **COMMON)
    training_task_group(TrainingConfig.model_validate({"dataset": {"id": 4, "name": "Hip", "source": "/data/{{ run_id }}"}, "retries": 3}))

if __name__ == "__main__":
    print("state", dag.test(logical_date=None).state)
"""


def rows(home: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(home / "airflow.db") as database:
        return database.execute(query).fetchall()


def test_a_template_that_cannot_be_rendered_fails_once_and_says_what_to_write(home: Path) -> None:
    file = home / "dags" / "templates.py"
    file.write_text(DAG)
    done = run([file], environment(home, backend="fake"))
    said = done.stdout + done.stderr
    states = dict(rows(home, "select task_id || ' ' || map_index, state || ' ' || try_number from task_instance"))
    once = ("of_the_day -1", "syntax -1", "nobody -1", "of_a_failed_one -1", "arithmetic -1", "mapped 0", "mapped 1", "store -1")
    assert {task: states.get(task) for task in once} == dict.fromkeys(once, "failed 1"), said[-6000:]
    assert (states["good -1"], states["nnunet.register -1"]) == ("success 1", "success 1")
    assert states["nnunet.run_settings -1"] == "failed 1", "a wrong param of the run is wrong at the next try too"
    assert "config: cases='/in/{{ ds }}': the template cannot be rendered: 'ds' is undefined; a run that was triggered by hand" in said
    assert "use {{ dag_run.run_after | ds }} for the day of the run, or {{ run_id }}" in said
    assert "config: cases='/in/{{ dag_run': the template cannot be rendered: unexpected end of template" in said
    for words in ("'None' has no attribute 'folder'", "XComArg result from of_the_day"):
        assert f"{words}" in said
    assert said.count("the task whose result it names has not run in this DAG run; run it first, or test the whole DAG") >= 2
    assert "nnunet.folds=9: 9 is not a fold of the split" in said


def test_testing_one_task_alone_says_that_the_one_before_it_is_missing(home: Path) -> None:
    (home / "dags" / "alone.py").write_text(
        "from airflow_nnunet.pipelines.dag_builder import build_training_dag\n"
        "from airflow_nnunet.pipelines.dataset_config import TrainingConfig\n"
        "dag = build_training_dag(TrainingConfig.model_validate({'dag_id': 'a', 'dataset': {'id': 4, 'name': 'Hip', 'source': '/in'}}))\n"
    )
    done = run(["-m", "airflow", "tasks", "test", "a", "train", "--map-index", "0"], environment(home, backend="fake"))
    said = done.stdout + done.stderr
    assert "expand_kwargs() expects a list[dict], not None" in said
    assert "config: the same input fails the same way" in said
    assert "bug" not in said, said[-3000:]
