"""What Airflow refuses about one dataset's DAG is said of that file, and no other DAG is lost by it."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.pipelines.dag_builder import build_training_dag, check_datasets, training_dags
from airflow_nnunet.pipelines.dataset_config import DatasetConfigError, TrainingConfig

PROJECT = Path(__file__).resolve().parents[2]
GOOD = "dataset: {id: 1, name: Good, source: /data}\n"
BASE = "dataset: {id: 2, name: Bad, source: /data}\n"
# One dataset file each: its name, what follows the dataset, and what the report must say.
BROKEN = {
    "cron.yaml": ('schedule: "61 * * * *"', "cron.yaml:2: schedule='61 * * * *': not a cron expression"),
    "words.yaml": ("schedule: nightly", "words.yaml:2: schedule='nightly': not a cron expression"),
    "empty.yaml": ('schedule: ""', "empty.yaml:2: schedule='': not a cron expression"),
    "never.yaml": ('schedule: "0 0 30 2 *"', "never.yaml:2: schedule='0 0 30 2 *': not a cron expression of a time that exists"),
    "random.yaml": ('schedule: "R R * * *"', "random.yaml:2: schedule='R R * * *': R and H are random times"),
    "zone.yaml": ("schedule: '@daily'\ntimezone: Europe/Bonn", "zone.yaml:3: timezone='Europe/Bonn': no such time zone"),
    "folder.yaml": ("schedule: '@daily'\ntimezone: Europe", "folder.yaml:3: timezone='Europe': no such time zone"),
    "lonely.yaml": ("timezone: Europe/Berlin", "lonely.yaml:2: timezone='Europe/Berlin': needs a schedule, and there is none"),
    "tag.yaml": (f"tags: [fine, {'x' * 101}]", "has 101 characters; Airflow takes 100 at most"),
    "untagged.yaml": ('tags: [""]', "untagged.yaml:2: tags.0='': must not be empty"),
    "my file.yaml": ("", "my file.yaml: its DAG would be 'nnunet_my file'; use at most 193 letters"),
    f"{'n' * 194}.yaml": ("", "its DAG would be 'nnunet_nnnn"),
    "id.yaml": ("dag_id: two words", "id.yaml:2: dag_id='two words'"),
    "prediction.yaml": ("", "dag_id='nnunet_prediction': one of this package's own DAGs has it already"),
    "taken.yaml": ("dag_id: nnunet_good", "dag_id='nnunet_good': good.yaml has it already"),
    "pool.yaml": (f"pool: {'p' * 257}", "has 257 characters; Airflow takes 256 at most"),
    "nopool.yaml": ('pool: " "', "nopool.yaml:2: pool=' ': must not be empty"),
    "queue.yaml": ('queue: "gpu,cpu"', "queue.yaml:2: queue='gpu,cpu': has a comma"),
    "lines.yaml": ('queue: "gpu\\n1"', "lines.yaml:2: queue='gpu\\n1': has characters that cannot be printed"),
    "owner.yaml": (f"owner: {'o' * 2001}", "has 2001 characters; Airflow takes 500 at most"),
    "priority.yaml": ("priority: 99999999999", "priority.yaml:2: priority=99999999999"),
    "retries.yaml": ("retries: 99999999999", "retries.yaml:2: retries=99999999999"),
    "seed.yaml": ("train: {seed: 99999999999999999999}", "seed.yaml:2: train.seed: is too large"),
    "nul.yaml": ('description: "a\\0b"', "nul.yaml:2: description: has a control character"),
    "half.yaml": ('description: "\\uD800"', "half.yaml"),
    "infinite.yaml": ("resources: {hang_s: .inf}", "infinite.yaml:2: resources.hang_s: must be a finite number"),
    "nan.yaml": ("dataset: {id: 2, name: Bad, source: /data, spacing_tolerance: .nan}", "nan.yaml:1: dataset.spacing_tolerance"),
    "date.yaml": ("preprocess: {custom_configurations: {2d_x: {since: 2024-01-01}}}", "since: is a date, which JSON does not have"),
    "itself.yaml": (
        "preprocess: {custom_configurations: {2d_x: &x {again: *x}}}",
        "is nested more than 40 levels deep, or contains itself",
    ),
    "bomb.yaml": (
        "predict:\n  series:\n    a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"    {b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
        "has more than 100000 values",
    ),
    "deep.yaml": ("predict: {series: {a: " + "[" * 5000 + "]" * 5000 + "}}", "deep.yaml"),
    "nofolds.yaml": ("train: {folds: []}", "nofolds.yaml:2: train.folds=[]: List should have at least 1 item"),
    "nomodel.yaml": ('train: {pretrained: ""}', "nomodel.yaml:2: train.pretrained='': String should have at least 1 character"),
    "form.yaml": ('train: {pretrained: "/a\\nb"}', "form.yaml: Airflow refuses its DAG 'nnunet_form': ParamValidationError"),
    "twice.yaml": ("retries: 1\nowner: me\nretries: 2", "twice.yaml:4: retries: is set here and in line 2, and only the last would count"),
    "nested.yaml": ("train:\n  epochs: 1\n  epochs: 2", "nested.yaml:4: epochs: is set here and in line 3"),
    "octal.yaml": ("retries: 010", "octal.yaml:2: 010: YAML reads a number with a leading 0 in base 8"),
    "sixty.yaml": ("priority: 1:30", "sixty.yaml:2: 1:30: YAML reads a number"),
    "text.yaml": ("- 1", "text.yaml: not valid YAML"),
    "short.yml": ("train: {epoch: 3}", "short.yml:2: train.epoch: unknown field"),
    "LOUD.YAML": ("train: {epoch: 3}", "LOUD.YAML:2: train.epoch: unknown field"),
}


def text_of(name: str) -> str:
    more = BROKEN[name][0]
    return (more if more.startswith("dataset:") else BASE + more) + "\n"


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "datasets"
    folder.mkdir()
    monkeypatch.setenv("AIRFLOW__NNUNET__DATASETS", str(folder))
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    (folder / "good.yaml").write_text(GOOD + "schedule: '@daily'\n")
    return folder


def config(**changes: Any) -> TrainingConfig:
    base = {"dag_id": "test", "dataset": {"id": 4, "name": "Hippocampus", "source": "/data"}}
    return TrainingConfig.model_validate(base | changes)


def test_fault_80_every_wrong_dataset_file_is_named_and_all_other_dags_are_taken(datasets: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    for name in BROKEN:
        (datasets / name).write_bytes(text_of(name).encode(errors="surrogatepass"))
    bag = DagBag(PROJECT / "dags", bundle_path=PROJECT / "dags")
    assert list(bag.import_errors) == ["nnunet_dataset_files.py"], bag.import_errors
    ours = {dag_id: dag.fileloc for dag_id, dag in bag.dags.items() if dag.fileloc.endswith(("nnunet_training.py", "dataset_files.py"))}
    # A wrong default of the form is named as the others are; its DAG is taken, since judging the form takes as long as building a DAG.
    assert set(ours) == {"nnunet_good", "nnunet_form"}, "neither a broken file's DAG, nor one that was built only to be judged"
    report = bag.import_errors["nnunet_dataset_files.py"]
    missing = {name: words for name, (_, words) in BROKEN.items() if words not in report}
    assert not missing, report


def test_what_just_fits_is_taken_by_airflow_too(datasets: Path) -> None:
    name = "N" * 100
    most = (
        f"dag_id: {'d' * 200}\ndataset: {{id: 99999, name: {name}, source: /data}}\ntags: [{'x' * 100}]\npool: {'p' * 256}\n"
        f"queue: {'q' * 256}\nowner: {'o' * 500}\npriority: 2147483647\nretries: 1000\nschedule: '*/5 0-6 1,15 * mon-fri'\n"
        "timezone: Pacific/Chatham\n"
    )
    (datasets / "most.yaml").write_text(most)
    (datasets / "GRÖSSE-1.v2.yaml").write_text("dataset: {id: 3, name: Name, source: /data}\n")
    (datasets / ".hidden.yaml").write_text("what an editor keeps: {")
    check_datasets(datasets)
    dags = training_dags(datasets)
    assert set(dags) == {"d" * 200, "nnunet_good", "nnunet_GRÖSSE-1.v2"}
    for dag in dags.values():
        json.dumps(scheduled(dag).dag_id, allow_nan=False)


@pytest.fixture
def strict_site() -> Iterator[None]:
    """A site whose policies want every DAG to have a mail address in its description, and change what they look at."""
    from airflow import settings
    from airflow.exceptions import AirflowClusterPolicyViolation
    from airflow.policies import hookimpl

    class Policies:
        @staticmethod
        @hookimpl
        def dag_policy(dag: Any) -> None:
            if "@" not in (dag.description or ""):
                raise AirflowClusterPolicyViolation("no mail address")
            dag.tags.add(f"seen-{len(dag.tags)}")

    manager = settings.get_policy_plugin_manager()
    manager.register(Policies)
    yield
    manager.unregister(Policies)


def test_a_dag_that_the_sites_policies_refuse_is_left_out_alone(datasets: Path, strict_site: None) -> None:
    (datasets / "mail.yaml").write_text("dataset: {id: 3, name: Name, source: /data}\ndescription: ask a@b.example\n")
    dags = training_dags(datasets)
    assert {dag_id: len(dag.tags) for dag_id, dag in dags.items()} == {"nnunet_mail": 2}, "the policies' own changes come later, once"
    with pytest.raises(DatasetConfigError, match=r"good\.yaml: Airflow refuses its DAG 'nnunet_good': .*no mail address"):
        check_datasets(datasets)


def test_a_folder_of_dataset_files_that_is_not_there_is_named(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__NNUNET__DATASETS", str(datasets / "gone"))
    with pytest.raises(DatasetConfigError, match=r"\[nnunet\] datasets='.*gone': no such folder"):
        check_datasets(datasets / "gone")
    assert training_dags(datasets / "gone") == {}


def scheduled(dag: Any) -> Any:
    """The DAG as the scheduler has it."""
    from airflow.serialization.serialized_objects import DagSerialization

    return DagSerialization.from_dict(DagSerialization.to_dict(dag))


def test_a_schedule_is_of_its_time_zone_in_summer_and_winter() -> None:
    from airflow.timetables.base import DataInterval, TimeRestriction
    from pendulum import datetime

    timetable = scheduled(build_training_dag(config(schedule="0 1 * * *", timezone="Europe/Berlin"))).timetable
    for day, hour in ((datetime(2024, 1, 10), 0), (datetime(2024, 7, 10), 23)):
        info = timetable.next_dagrun_info(
            last_automated_data_interval=DataInterval.exact(day), restriction=TimeRestriction(earliest=None, latest=None, catchup=True)
        )
        assert info.run_after.hour == hour, "one o'clock in Berlin, in UTC"


def test_a_schedule_without_a_time_zone_follows_airflows_default(tmp_path: Path) -> None:
    code = (
        "from airflow_nnunet.pipelines.dag_builder import build_training_dag as build\n"
        "from airflow_nnunet.pipelines.dataset_config import TrainingConfig as C\n"
        "given = {'dag_id': 'x', 'dataset': {'id': 4, 'name': 'S', 'source': '/d'}, 'schedule': '0 1 * * *'}\n"
        "for zone in ({}, {'timezone': 'Asia/Tokyo'}):\n"
        "    dag = build(C(**given, **zone)); print(dag.timezone, dag.timetable.timezone)"
    )
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__DEFAULT_TIMEZONE": "Europe/Berlin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["Europe/Berlin Europe/Berlin", "Asia/Tokyo Asia/Tokyo"]


@pytest.mark.parametrize("preset", ["@once", "@continuous"])
def test_schedules_without_a_clock_run_at_once(preset: str) -> None:
    dag = scheduled(build_training_dag(config(schedule=preset)))
    assert dag.next_dagrun_info(last_automated_run_info=None).run_after <= dt.datetime.now(dt.UTC)


def test_unpausing_a_dag_for_the_first_time_makes_up_for_no_missed_run() -> None:
    now = dt.datetime.now(dt.UTC)
    missed = now - dt.timedelta(hours=1)
    dag = scheduled(build_training_dag(config(schedule=f"{missed.minute} {missed.hour} * * *")))
    assert dag.next_dagrun_info(last_automated_run_info=None).run_after > now
    due = now - dt.timedelta(minutes=2)
    dag = scheduled(build_training_dag(config(schedule=f"{due.minute} {due.hour} * * *")))
    assert dag.next_dagrun_info(last_automated_run_info=None).run_after <= now, "a scheduler that is late by minutes skips nothing"
