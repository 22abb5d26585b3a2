"""The DAG that promotes models and rolls back from the UI, in a private Airflow and with the interpreter of the jobs."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError

from airflow_nnunet import build_model_dags
from airflow_nnunet.jobs.exceptions import InvalidConfig
from airflow_nnunet.pipelines.model_changes import ModelChange, make_change
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import entries
from support import airflow
from support.airflow import environment, run
from support.promotion import DATASET, select

CHAMPIONS = """
import json, os, sqlite3
from airflow_nnunet import build_model_dags, datasets_folder

dag = build_model_dags(datasets_folder(__file__))["nnunet_models"]
globals()["dag"] = dag

if __name__ == "__main__":
    for conf in json.loads(os.environ["RUNS"]):
        done = dag.test(run_conf={"model": None, "reason": "It was approved.", "dataset": "Dataset005_Phantom", **conf}, logical_date=None)
        with sqlite3.connect(os.environ["AIRFLOW_HOME"] + "/airflow.db") as database:  # the next run removes what this one leaves there
            ((value,),) = database.execute("select value from xcom where key = 'return_value'").fetchall() or [("{}",)]
            tries = database.execute("select max(try_number) from task_instance").fetchone()[0]
        found = json.loads(value)
        print("done", json.dumps([str(done.state), tries, json.loads(found) if isinstance(found, str) else found]))
"""


@pytest.fixture
def phantom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a dataset and two selected models, which section [nnunet] names."""
    root = tmp_path / "work"
    monkeypatch.setenv("AIRFLOW__NNUNET__WORKSPACE", str(root))
    workspace = Workspace.below(root)
    workspace.raw_dataset(DATASET).mkdir(parents=True)
    select(workspace, "a", "b")
    return workspace


def change(
    action: str, model: str | None = None, *, run_id: str = "manual__1", user: str | None = "ada"
) -> tuple[dict[str, Any], list[Any]]:
    """Make a change as a run of the DAG. Returns the result and the events that were sent."""
    context = airflow.context()
    context["dag_run"] = SimpleNamespace(dag_id="nnunet_models", run_id=run_id, triggering_user_name=user)
    wanted = ModelChange(dataset=DATASET, action=action, model=model, reason="It was approved.")
    return make_change(wanted, context, team=None, conn_id=None), context["outlet_events"].sent


def test_a_change_is_told_and_the_event_is_sent_when_the_champion_changed(phantom: Workspace) -> None:
    found, sent = change("promote", "a", run_id="1")
    assert (found["changed"], found["event"], found["before"], found["champion"]) == (True, "promoted", None, "a")
    assert sent == [(f"nnunet://model/{DATASET}", {"model": "a", "dice": None, "cv_dice": None})]
    assert change("promote", "a", run_id="2")[1] == [], "it was the champion already"
    assert len(change("promote", "b", run_id="3")[1]) == 1
    found, sent = change("rollback", run_id="4", user=None)
    assert (found["champion"], found["before"], found["text"].splitlines()[0]) == ("a", "b", f"{DATASET}: rolled back from b to a")
    assert "b was rolled back to a" in found["held"]
    assert [extra["model"] for _, extra in sent] == ["a"]
    for number, action in enumerate(("release", "pin", "release")):
        assert change(action, run_id=f"5.{number}")[1] == []
    assert change("retire", "b", run_id="6")[0]["event"] == "retired"
    told = [(entry.event.value, entry.by, entry.why) for entry in entries(phantom, DATASET)]
    assert told[0] == ("promoted", "ada", "It was approved.")
    assert told[2][:2] == ("rolled_back", "DAG nnunet_models, run 4")


def test_a_run_that_is_tried_again_rolls_back_once(phantom: Workspace) -> None:
    for model in ("a", "b"):
        change("promote", model, run_id=model)
    first, _ = change("rollback", run_id="r")
    again, sent = change("rollback", run_id="r")
    assert again == first
    assert len(sent) == 1, "the attempt before may have ended before it sent the event"
    change("promote", "b", run_id="later")
    again, sent = change("rollback", run_id="r")
    assert (again["model"], again["champion"], sent) == ("a", "b", []), "another model is the champion meanwhile"


def test_a_refusal_is_said_in_the_registrys_words(phantom: Workspace) -> None:
    for action, model, words in (
        ("promote", None, "promote needs a model"),
        ("promote", "c", "models of Dataset005_Phantom: a, b"),
        ("rollback", None, "knows no champion before"),
        ("retire", "../a", "model="),
        ("pin", None, "promote it first"),
    ):
        with pytest.raises(InvalidConfig, match=words):
            change(action, model)
    (phantom.model_root("a") / DATASET / "plans.json").write_text("changed")
    with pytest.raises(InvalidConfig, match="differ from its card"):
        change("promote", "a")


def test_each_team_has_a_dag_of_its_own_with_its_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teams, datasets = tmp_path / "teams", tmp_path / "datasets"
    for folder in (teams, datasets):
        folder.mkdir()
    monkeypatch.setenv("AIRFLOW__NNUNET__TEAMS", str(teams))
    (teams / "mri.yaml").write_text(f"pool: {{slots: 1}}\nnnunet: {{workspace: {tmp_path}}}\n")
    for number, more in ((1, ""), (2, "team: mri\n"), (3, "nnunet_conn_id: other\n")):
        (datasets / f"d{number}.yaml").write_text(f"dataset: {{id: {number}, name: T, source: /data}}\n{more}")
    (datasets / "same.yaml").write_text("dataset: {id: 1, name: T, source: /data}\ndag_id: another\n")
    (datasets / "taken.yaml").write_text("dataset: {id: 9, name: T, source: /data}\ndag_id: nnunet_models_mri\n")
    dags = build_model_dags(datasets)
    choices = {name: dag.params.get_param("dataset").schema["enum"] for name, dag in dags.items()}
    assert choices == {"nnunet_models": ["Dataset001_T", "Dataset003_T@other"], "nnunet_models_mri": ["Dataset002_T"]}
    assert dags["nnunet_models_mri"].tags == {"nnunet", "model", "team:mri"}
    params = dags["nnunet_models"].params
    for name, value in (("dataset", "Dataset002_T"), ("action", "delete"), ("reason", " "), ("reason", "a\nb"), ("model", 3)):
        with pytest.raises(ParamValidationError):
            params[name] = value
    assert build_model_dags(tmp_path / "nothing") == {}


def test_a_whole_run_promotes_rolls_back_and_fails_at_once(tmp_path: Path, phantom: Workspace) -> None:
    home = tmp_path / "home"
    for name in ("dags", "plugins", "include/datasets"):
        (home / name).mkdir(parents=True)
    (home / "include/datasets/phantom.yaml").write_text("dataset: {id: 5, name: Phantom, source: /data}\n")
    file = home / "dags" / "models.py"
    file.write_text(CHAMPIONS)
    env = environment(home, workspace=str(Path(phantom.raw).parent))
    assert run(["-m", "airflow", "db", "migrate"], env).returncode == 0
    runs = [
        {"action": "promote", "model": "a"},
        {"action": "promote", "model": "b"},
        {"action": "rollback"},
        {"action": "retire", "model": "a"},
    ]
    done = run([file], env | {"RUNS": json.dumps(runs)})
    found = [json.loads(line.removeprefix("done ")) for line in done.stdout.splitlines() if line.startswith("done ")]
    assert [(state, result.get("event"), result.get("champion")) for state, _, result in found] == [
        ("success", "promoted", "a"),
        ("success", "promoted", "b"),
        ("success", "rolled_back", "a"),
        ("failed", None, None),
    ], done.stderr
    assert found[-1][1] == 1, "a refusal is not tried again"
    with sqlite3.connect(home / "airflow.db") as database:
        events = [json.loads(extra)["model"] for (extra,) in database.execute("select extra from asset_event order by id")]
    assert events == ["a", "b", "a"]
    assert "is the champion of Dataset005_Phantom; promote another model or roll back first" in done.stdout + done.stderr
