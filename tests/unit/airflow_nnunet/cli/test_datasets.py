"""``airflow nnunet dataset``: the history as people read it, and a withdrawal that never loads NumPy into Airflow."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest

from airflow_nnunet.cli.datasets import dataset_history, dataset_rows, find_dataset, history_text
from devtools.testbed.data import context, decathlon, describe_decathlon, register_dataset
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.contract.storage.withdrawals import Tombstones
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.steps import register
from support import airflow
from support.airflow import environment, run

ME = pwd.getpwuid(os.geteuid()).pw_name


def grow(workspace: Workspace, source: Path) -> None:
    """Two registrations; the second by a job of Airflow's."""
    decathlon(source, ["a", "b", "c"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    decathlon(source, ["d"], first_seed=9)
    describe_decathlon(source, ["a", "b", "d"])
    params = RegisterParams(dataset_id=4, name="Small", source=str(source), holdout_fraction=0.0, on_removed="drop")
    surroundings = context(workspace, "register-00000001")
    labels = {"dag_id": "nightly", "run_id": "scheduled__1", "task_id": "register", "triggered_by": "alice"}
    spec = JobSpec(job_id="register-00000001", step="register", params=params.to_json(), workspace=workspace, labels=labels)
    write_json(surroundings.job.path / "spec.json", spec.to_json())
    register.run(params, surroundings)


def test_the_history_says_who_when_what_and_the_hashes(tmp_path: Path, workspace: Workspace) -> None:
    grow(workspace, tmp_path / "s")
    first, second = dataset_history(workspace, "4")
    assert (first["by"], first["previous"], first["added"]) == ({"user": ME}, None, 3)
    assert first["cases"] == {"added": ["a", "b", "c"]}
    assert second["by"] == {"user": ME, "triggered_by": "alice", "dag_id": "nightly", "run_id": "scheduled__1", "task_id": "register"}
    assert (second["previous"], second["added"], second["removed"]) == (first["hash"], 1, 1)
    assert second["cases"] == {"added": ["d"], "removed": ["c"]}
    said = history_text("Dataset004_Small", [first, second]).splitlines()
    assert said[1].endswith(f"1 added, 1 removed  by alice (as {ME}), nightly scheduled__1")
    assert said[2] == f"    hash {first['hash']} -> {second['hash']}"
    assert said[3:5] == ["    added: d", "    removed: c"]
    assert said[5].endswith(f"3 added  by {ME}")


def test_a_changed_setting_is_in_the_history_without_a_changed_hash(tmp_path: Path, workspace: Workspace) -> None:
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    register_dataset(workspace, source, holdout_fraction=0.3)
    first, second = dataset_history(workspace, "Small")
    assert (second["hash"], second["cases"]) == (first["hash"], {})
    assert second["settings"] == {"holdout": {"before": {"fraction": 0.0, "cases": []}, "after": {"fraction": 0.3, "cases": []}}}
    assert '    holdout: {"fraction": 0.0, "cases": []} -> {"fraction": 0.3, "cases": []}' in history_text("x", [first, second])
    register_dataset(workspace, source, holdout_fraction=0.3)
    assert len(dataset_history(workspace, "Small")) == 2


def test_a_patient_or_split_that_moves_is_told_from_changed_content(tmp_path: Path, workspace: Workspace) -> None:
    source = decathlon(tmp_path / "s", ["p1_a", "p1_b", "p2_a"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    register_dataset(workspace, source, holdout_fraction=0.0, group_pattern="(p[0-9])_")
    line = dataset_history(workspace, "4")[-1]
    assert (line["changed"], line["moved"], line["cases"]) == (0, 3, {"moved": ["p1_a", "p1_b", "p2_a"]})


def test_manifests_from_before_are_read(tmp_path: Path, workspace: Workspace) -> None:
    grow(workspace, tmp_path / "s")
    path = Path(workspace.raw) / "Dataset004_Small" / "manifest.json"
    manifest = read_json(path)
    old = ("at", "hash", "added", "changed", "removed")
    manifest["history"] = [{name: line[name] for name in old} for line in manifest["history"]]
    write_json(path, manifest)
    first, second = dataset_history(workspace, "4")
    assert (second["previous"], second["by"], second["withdrawn"]) == (first["hash"], {}, 0)
    assert "1 added, 1 removed  by unknown" in history_text("x", [first, second])
    result = register_dataset(workspace, tmp_path / "s", holdout_fraction=0.0)
    assert result["already_done"]


def test_a_long_list_of_ids_is_cut_and_its_count_is_whole(tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_jobs.dataset.manifest.HISTORY_IDS", 10)
    register_dataset(workspace, decathlon(tmp_path / "s", [f"c{n:02d}" for n in range(12)]), holdout_fraction=0.0)
    (line,) = dataset_history(workspace, "4")
    assert (line["added"], len(line["cases"]["added"])) == (12, 10)
    assert "    added: c00, c01, c02, c03, c04, c05, c06, c07 and 4 more" in history_text("x", [line])


def test_datasets_are_found_by_id_name_and_short_name(tmp_path: Path, workspace: Workspace) -> None:
    register_dataset(workspace, decathlon(tmp_path / "s", ["a", "b"]))
    assert {find_dataset(workspace, name) for name in ("4", "004", "Dataset004_Small", "Small")} == {"Dataset004_Small"}
    with pytest.raises(ConfigError, match="Registered: Dataset004_Small"):
        find_dataset(workspace, "Large")
    (Path(workspace.raw) / "Dataset007_Hand").mkdir()
    ours, theirs = dataset_rows(workspace)
    assert (ours["train"] + ours["holdout"], ours["problem"], ours["version"]) == (2, None, None)
    assert "register the dataset" in theirs["problem"]


def test_the_commands_list_log_and_withdraw(home: Path) -> None:
    env = environment(home, input_roots=str(home))
    workspace = Workspace.below(home / "nnunet", input_roots=(str(home),))
    grow(workspace, home / "s")
    shown = run(["-m", "airflow", "nnunet", "dataset", "log", "Small", "--json"], env)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["history"] == dataset_history(workspace, "4")
    dry = run(["-m", "airflow", "nnunet", "dataset", "withdraw", "Small", "--case", "a", "b", "--dry-run"], env)
    assert dry.returncode == 0, dry.stderr
    assert "Dataset004_Small: 2 cases would be withdrawn: a, b" in dry.stdout
    # The same commands where the package is a plain folder on PYTHONPATH.
    done = run(["-m", "airflow_nnunet", "dataset", "withdraw", "4", "--case", "a", "--reason", "letter of May", "--json"], env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cases"] == ["a"]
    wrong = run(["-m", "airflow_nnunet", "dataset", "withdraw", "4", "--case", "zz"], env)
    assert wrong.returncode == 3
    assert "'zz' is not a case of Dataset004_Small" in wrong.stderr
    listed = run(["-m", "airflow_nnunet", "dataset", "list"], env)
    assert "Dataset004_Small  2 train, 0 holdout, 0 test, 1 withdrawn" in listed.stdout
    log = run(["-m", "airflow_nnunet", "dataset", "log", "4"], env)
    assert f"1 withdrawn  by {ME}" in log.stdout
    assert "    reason: letter of May" in log.stdout
    assert run(["-m", "airflow_nnunet", "dataset", "log", "Other"], env).returncode == 3
    stones = Tombstones(workspace, "Dataset004_Small")
    stones.cases["a"]["complete"] = False
    stones.save()
    sick = run(["-m", "airflow_nnunet", "doctor"], env)
    assert "warn  withdrawals: 1 cases of Dataset004_Small are not removed everywhere; run airflow nnunet dataset withdraw" in sick.stdout


def test_a_tasks_job_says_who_triggered_the_run(nnunet: Path) -> None:
    from airflow_nnunet.operators import RegisterDatasetOperator
    from airflow_nnunet.settings.resolver import resolve_config

    class Run:
        triggering_user_name = "alice"

    task = RegisterDatasetOperator(task_id="task", dataset_id=4, name="Small", source="/in", owner="radiology")
    labels = task.job_spec({**airflow.context(), "dag_run": Run()}, resolve_config()).labels
    assert (labels["triggered_by"], labels["owner"], labels["dag_id"]) == ("alice", "radiology", "dag")
    quiet = RegisterDatasetOperator(task_id="task", dataset_id=4, name="Small", source="/in")
    assert set(quiet.job_spec(airflow.context(), resolve_config()).labels) == {"dag_id", "run_id", "task_id", "map_index"}


def test_the_withdrawing_airflow_process_imports_nothing_heavy(home: Path) -> None:
    program = "import sys, airflow_nnunet.cli.datasets; print(sorted({'torch', 'nnunetv2', 'numpy', 'nibabel'} & set(sys.modules)))"
    done = run(["-c", program], environment(home))
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
