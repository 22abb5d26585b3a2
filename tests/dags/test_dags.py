"""The project's DAG files as Airflow's DAG processor sees them."""

from __future__ import annotations

import configparser
import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError

from airflow_nnunet.jobs.exceptions import InvalidConfig
from airflow_nnunet.pipelines.dag_builder import build_training_dag, training_task_group
from airflow_nnunet.pipelines.dataset_config import TrainingConfig
from airflow_nnunet.pipelines.planning import require_champion

PROJECT = Path(__file__).resolve().parents[2]
GOOD = "dataset: {{id: {number}, name: Test{number}, source: /data}}\n"


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "datasets"
    folder.mkdir()
    monkeypatch.setenv("AIRFLOW__NNUNET__DATASETS", str(folder))
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    return folder


@pytest.fixture
def teams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "teams"
    folder.mkdir()
    monkeypatch.setenv("AIRFLOW__NNUNET__TEAMS", str(folder))
    return folder


def bag(folder: Path = PROJECT / "dags") -> tuple[dict[str, object], dict[str, str]]:
    from airflow.dag_processing.dagbag import DagBag

    found = DagBag(folder, bundle_path=folder)
    return dict(found.dags), dict(found.import_errors)


def config(**changes: object) -> TrainingConfig:
    base = {"dag_id": "test", "dataset": {"id": 4, "name": "Hippocampus", "source": "/data"}}
    return TrainingConfig.model_validate(base | changes)


def test_every_dag_file_of_the_project_loads_and_serializes() -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    dags, errors = bag()
    assert not errors
    assert set(dags) == {
        "nnunet_hippocampus",
        "nnunet_models",
        "nnunet_phantom_tiny",
        "nnunet_prediction",
        "nnunet_predictions",
        "nnunet_prediction_cleanup",
        "nnunet_dicom_pull",
        "hospital_etl_example",
    }
    for dag in dags.values():
        DagSerialization.to_dict(dag)


def test_the_forms_defaults_are_valid_values_of_the_form() -> None:
    for changes in ({}, {"schedule": "@daily"}, {"preprocess": {"configurations": ["2d", "3d_lowres", "3d_cascade_fullres"]}}):
        build_training_dag(config(**changes)).params.validate()


def test_a_broken_dataset_file_is_an_import_error_and_leaves_the_other_dags_alone(datasets: Path) -> None:
    (datasets / "good.yaml").write_text(GOOD.format(number=1))
    (datasets / "broken.yaml").write_text(GOOD.format(number=2) + "train: {epoch: 3}\n")
    dags, errors = bag()
    assert "nnunet_good" in dags
    assert "nnunet_broken" not in dags
    assert list(errors) == ["nnunet_dataset_files.py"], "an error on nnunet_training.py would take the good DAGs with it"
    assert "broken.yaml:2: train.epoch: unknown field; did you mean 'epochs'?" in errors["nnunet_dataset_files.py"]


def test_each_team_has_a_prediction_dag_with_its_pool_and_no_say_about_the_team_in_a_run(teams: Path, tmp_path: Path) -> None:
    (teams / "radiology.yaml").write_text(f"pool: {{slots: 2}}\nqueue: gpu\nnnunet: {{workspace: {tmp_path}}}\n")
    dags, errors = bag()
    assert not errors
    for dag_id, team, pool in (("nnunet_predictions", None, "predictions"), ("nnunet_predictions_radiology", "radiology", "radiology")):
        dag: Any = dags[dag_id]
        assert set(dag.params) == {"dataset", "model", "content"}
        assert not dag.is_paused_upon_creation
        task = dag.get_task("predict")
        assert (task.team, task.pool, "team" in task.template_fields) == (team, pool, False)
    assert dags["nnunet_predictions_radiology"].get_task("predict").queue == "gpu"  # type: ignore[attr-defined]


def test_a_hundred_dataset_files_are_parsed_without_the_heavy_stack(datasets: Path) -> None:
    for number in range(1, 101):
        (datasets / f"d{number}.yaml").write_text(GOOD.format(number=number))
    code = textwrap.dedent("""
        import sys
        from airflow_nnunet.pipelines.dag_builder import datasets_folder, training_dags
        assert len(training_dags(datasets_folder(''))) == 100
        print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "nnunetv2", "numpy", "nibabel", "SimpleITK", "pandas"}))
    """)
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_pulling_dag_is_parsed_quickly_and_without_what_reads_dicom() -> None:
    code = textwrap.dedent("""
        import sys, time
        import airflow.sdk
        began = time.perf_counter()
        import runpy
        assert runpy.run_path(sys.argv[1])["dag"].dag_id == "nnunet_dicom_pull"
        heavy = {"pydicom", "numpy", "dicomweb_client", "highdicom", "requests", "torch", "nibabel", "SimpleITK"}
        print(sorted({name.partition(".")[0] for name in sys.modules} & heavy), f"{time.perf_counter() - began:.2f} s")
    """)
    path = PROJECT / "dags" / "nnunet_dicom_pull.py"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "plugins")}
    done = subprocess.run([sys.executable, "-c", code, path], env=environment, capture_output=True, text=True, check=True)
    heavy, _, seconds = done.stdout.splitlines()[-1].partition("] ")
    print(f"dags/nnunet_dicom_pull.py: {seconds} beyond airflow.sdk")
    assert heavy == "["


def test_the_pulling_dag_takes_each_study_through_its_steps() -> None:
    dag = bag()[0]["nnunet_dicom_pull"]
    order = ["model", "new_studies", "study.retrieve", "study.predict", "study.store"]
    for before, after in itertools.pairwise(order):
        assert after in dag.get_task(before).downstream_task_ids, f"{before} -> {after}"  # type: ignore[attr-defined]
    assert [dag.get_task(name).pool for name in order[2:]] == ["pacs", "gpu", "pacs"]  # type: ignore[attr-defined]


def test_the_pulling_dag_can_be_scheduled_as_its_docstring_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (PROJECT / "dags" / "nnunet_dicom_pull.py").read_text()
    (tmp_path / "pull.py").write_text(text.replace("schedule=None", 'schedule="*/30 * * * *"'))
    dags, errors = bag(tmp_path)
    assert not errors
    dag: Any = dags["nnunet_dicom_pull"]
    dag.params.validate()
    assert dag.params["dataset"] is None

    monkeypatch.setenv("AIRFLOW__NNUNET__WORKSPACE", str(tmp_path / "work"))
    for dataset, words in ((None, "dataset: is empty"), ("4", "not registered"), (5, "no model of Dataset005_Hip is promoted")):
        (tmp_path / "work" / "nnUNet_raw" / "Dataset005_Hip").mkdir(parents=True, exist_ok=True)
        with pytest.raises(InvalidConfig, match=words):
            require_champion(dataset)
    results = tmp_path / "work" / "nnUNet_results"
    model = results / ".versions" / "m1" / "Dataset005_Hip"
    model.mkdir(parents=True)
    (results / "Dataset005_Hip").symlink_to(model)
    assert require_champion("5") == "m1"


def test_the_pipeline_has_its_order_and_its_settings(teams: Path) -> None:
    (teams / "mri.yaml").write_text("pool: {slots: 2}\nnnunet: {workspace: /data/mri}\n")
    dag = build_training_dag(config(schedule="0 1 * * *", owner="radiology", team="mri", tags=["brain"], pool="big", priority=7, retries=4))
    order = ["register", "has_work", "preprocess", "plan_folds", "train", "find_best", "plan_predictions", "predict"]
    for before, after in itertools.pairwise(order):
        assert after in dag.get_task(before).downstream_task_ids, f"{before} -> {after}"
    assert (dag.max_active_runs, dag.catchup) == (1, False)
    assert {"nnunet", "Dataset004_Hippocampus", "brain", "team:mri"} == set(dag.tags)
    for name in ("train", "find_best", "predict"):
        task = dag.get_task(name)
        assert (task.owner, task.pool, task.priority_weight, task.retries) == ("radiology", "big", 7, 4), name
    assert dag.get_task("register").pool != "big", "copying files takes no GPU slot"
    assert "preprocess.configurations" in (dag.doc_md or "")


def test_the_form_of_predictions_refuses_what_no_job_could_use() -> None:
    params = bag()[0]["nnunet_prediction"].params  # type: ignore[attr-defined]
    wrong = {"dataset": "Hippocampus", "cases": "incoming", "output": "out", "parts": -3}
    for name, value in wrong.items():
        assert "minimum" not in params.get_param(name).schema, "Airflow's form would turn a smaller number into this one without a word"
        with pytest.raises(ParamValidationError):
            params[name] = value
    for name, value in (("dataset", "4"), ("cases", "imagesTs"), ("cases", ["/in/a.nii.gz"]), ("output", "/out"), ("parts", 64)):
        params[name] = value


def test_the_cascade_waits_for_all_low_resolution_folds() -> None:
    assert not build_training_dag(config()).has_task("train_cascade")
    dag = build_training_dag(config(preprocess={"configurations": ["3d_lowres", "3d_cascade_fullres"]}))
    assert dag.get_task("train_cascade").upstream_task_ids == {"train", "plan_cascade"}
    assert {"train", "train_cascade"} <= dag.get_task("find_best").upstream_task_ids


def test_the_form_has_typed_params_with_the_files_values() -> None:
    dag = build_training_dag(config(train={"epochs": 12, "folds": [0, 1]}))
    params = dag.params
    assert (params["epochs"], params["folds"], params["configurations"]) == (12, ["0", "1"], ["2d", "3d_fullres"])
    for name in params:
        param = params.get_param(name)
        assert param.description, name
        assert {"type", "title", "section"} <= set(param.schema), name
    with pytest.raises(ParamValidationError, match="less than or equal to the minimum"):
        params["epochs"] = 0


def test_the_builder_is_a_task_group_too() -> None:
    from airflow.sdk import DAG

    with DAG("mine", schedule=None) as dag:
        first = training_task_group(config(dag_id=None), "first")
        second = training_task_group(config(dag_id=None), "second")
        first >> second
    assert "second.register" in dag.get_task("first.predict").downstream_task_ids
    assert "first.train" in str(dag.get_task("first.find_best").model)


def test_the_configuration_template_binds_loopback_only() -> None:
    template = configparser.ConfigParser(interpolation=None)
    template.read(PROJECT / "airflow.cfg.template")
    assert template["api"]["host"] == "127.0.0.1"
    hosts = [value for section in template.sections() for option, value in template[section].items() if "host" in option]
    assert set(hosts) == {"127.0.0.1"}


def test_every_option_of_the_template_is_known_to_airflow() -> None:
    from airflow.configuration import conf

    template = configparser.ConfigParser(interpolation=None)
    template.read(PROJECT / "airflow.cfg.template")
    known = {section: set(entry["options"]) for section, entry in conf.configuration_description.items()}
    # Airflow hands this whole section to the broker's client.
    known["celery_broker_transport_options"] |= set(pytest.importorskip("kombu.transport.redis").Channel.from_transport_options)
    unknown = [(s, o) for s in template.sections() if s != "nnunet" for o in template[s] if o not in known[s]]
    assert not unknown
