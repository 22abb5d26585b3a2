"""The names that users import from the package, and the old ones that version 0.1.0 had."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.exceptions import AirflowProviderDeprecationWarning

import airflow_nnunet

PROJECT = Path(__file__).resolve().parents[3]
PUBLIC = {
    "Backend", "BatchPredictOperator", "DatasetConfigError", "DatasetSection", "DicomWebHook", "DicomWebRetrieveOperator",
    "DicomWebStoreOperator", "DicomWebStudySensor", "DicomWebStudyTrigger", "EvaluateSection", "FindBestConfigOperator", "JobTrigger",
    "NnunetConfig", "NnunetHook", "NnunetJobError", "NnunetOperator", "NnunetRetryPolicy", "PredictSection", "PreprocessOperator",
    "PreprocessSection",
    "RegisterDatasetOperator", "ResourcesSection", "SelectSection", "TrainFoldOperator", "TrainSection", "TrainingConfig", "__version__",
    "build_model_dags", "build_prediction_dags", "build_training_dag", "check_datasets", "dataset_asset", "datasets_folder", "form",
    "get_backend", "load_config", "model_asset", "require_champion", "training_dags", "training_task_group",
}  # fmt: skip
OLD = {
    "dag_builder": (
        "pipelines.dag_builder",
        ["build_training_dag", "check_datasets", "datasets_folder", "training_dags", "training_task_group"],
    ),
    "dataset_config": (
        "pipelines.dataset_config",
        ["CASCADE", "LOW_RESOLUTION", "DatasetConfigError", "DatasetSection", "Fold", "Loaded", "PredictSection", "PreprocessSection",
         "ResourcesSection", "SelectSection", "TrainSection", "TrainingConfig", "load_config", "load_folder"],
    ),
}  # fmt: skip


def test_the_public_names_are_exactly_these() -> None:
    assert set(airflow_nnunet.__all__) == PUBLIC
    assert len(airflow_nnunet.__all__) == len(PUBLIC)
    assert set(dir(airflow_nnunet)) >= PUBLIC
    for name in PUBLIC:
        found = getattr(airflow_nnunet, name)
        assert found is getattr(airflow_nnunet, name)
        if name != "__version__":
            assert (found.__name__, found.__module__.partition(".")[0]) == (name, "airflow_nnunet")
    with pytest.raises(AttributeError, match="no attribute 'TrainOperator'"):
        _ = airflow_nnunet.TrainOperator


def test_type_checkers_see_each_name_where_it_is_loaded_from() -> None:
    tree = ast.parse(Path(str(airflow_nnunet.__file__)).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: str(node.module).removeprefix("airflow_nnunet.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == airflow_nnunet._HOMES
    assert {*seen, "__version__"} == PUBLIC


def test_the_import_alone_imports_nothing_but_the_standard_library() -> None:
    program = """
        import json, sys
        before = set(sys.modules)
        import airflow_nnunet
        assert airflow_nnunet.__version__ and dir(airflow_nnunet)
        print(json.dumps(sorted(set(sys.modules) - before)))
    """
    lines = "\n".join(line.strip() for line in program.splitlines())
    plugins = Path(str(airflow_nnunet.__file__)).parents[1]
    done = subprocess.run([sys.executable, "-c", lines], env={"PYTHONPATH": str(plugins)}, capture_output=True, text=True, check=True)
    new = {name for name in json.loads(done.stdout) if name.partition(".")[0] not in sys.stdlib_module_names}
    assert new == {"airflow_nnunet", "airflow_nnunet.provider_info"}


@pytest.mark.parametrize("path", sorted((PROJECT / "dags").glob("*.py")), ids=lambda path: path.stem)
def test_the_dag_files_that_users_copy_import_public_names_alone(path: Path) -> None:
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if str(node.module).startswith("airflow_nnunet")]
    assert {node.module for node in ours} == {"airflow_nnunet"}
    assert {alias.name for node in ours for alias in node.names} <= PUBLIC


@pytest.mark.parametrize("old", OLD)
def test_a_dag_file_of_before_gets_the_same_names_and_a_warning(old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, names = OLD[old]
    dag_file = tmp_path / f"of_before_{old}.py"
    dag_file.write_text(f"from airflow_nnunet.{old} import {', '.join(names)}\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop(f"airflow_nnunet.{old}", None)
    with pytest.warns(AirflowProviderDeprecationWarning, match=r"removed in version 0\.3\.0; import its names from airflow_nnunet") as seen:
        module = importlib.import_module(dag_file.stem)
    assert [Path(warning.filename) for warning in seen] == [dag_file]
    new = importlib.import_module(f"airflow_nnunet.{home}")
    assert all(getattr(module, name) is getattr(new, name) for name in names)
    assert set(sys.modules[f"airflow_nnunet.{old}"].__all__) == set(names)


def test_a_triggerer_goes_on_with_a_task_that_was_deferred_before(tmp_path: Path) -> None:
    from airflow._shared.module_loading import import_string
    from airflow.models.trigger import Trigger

    arguments = {"job": str(tmp_path), "backend": "local", "backend_options": {}, "poll_interval": 2.0, "lost_after": 120.0}
    row = Trigger(
        classpath="airflow_nnunet.triggers.JobTrigger", kwargs={**arguments, "metrics_offset": 0, "log_offset": None, "hold_s": 0.0}
    )
    trigger = import_string(row.classpath)(**row.kwargs)
    assert type(trigger) is airflow_nnunet.JobTrigger
    assert trigger.serialize()[0] == "airflow_nnunet.jobs.trigger.JobTrigger"
    assert trigger.serialize()[1] == row.kwargs
