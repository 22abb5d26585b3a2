"""The types of the installed wheel, as mypy sees them in somebody's own DAGs."""

from __future__ import annotations

import re
import site
import subprocess
import sys
from pathlib import Path

import pytest

from support.snippets import PROJECT, snippets

EXAMPLES = sorted(path for path in (PROJECT / "dags").glob("*.py"))
RIGHT = """
from pathlib import Path

from airflow.sdk import DAG, task

from airflow_nnunet.pipelines.dag_builder import training_task_group
from airflow_nnunet.pipelines.dataset_config import load_config
from airflow_nnunet.operators import BatchPredictOperator, FindBestConfigOperator, RegisterDatasetOperator, TrainFoldOperator
from airflow_nnunet.pipelines.run_form import form

config = load_config(Path("liver.yaml"))

with DAG("mine", schedule=None, params={**form(config, "nnunet")}):

    @task
    def folds() -> list[int]:
        return [0, 1]

    register = RegisterDatasetOperator(task_id="register", dataset_id=4, name="Hip", source="/in", multiple_outputs=True)
    train = TrainFoldOperator.partial(task_id="train", dataset=register.output["dataset"], configuration="2d").expand(fold=folds())
    best = FindBestConfigOperator(task_id="best", dataset=register.output["dataset"], folds=folds())
    BatchPredictOperator(task_id="predict", dataset=4, cases="holdout", output_folder="/out", model=best.output["model"])
    train >> best >> training_task_group(config)
"""
PUBLIC = """
import datetime as dt
from pathlib import Path

import airflow_nnunet
from airflow_nnunet import (
    Backend,
    DatasetSection,
    DicomWebRetrieveOperator,
    NnunetRetryPolicy,
    TrainFoldOperator,
    TrainingConfig,
    TrainSection,
    build_training_dag,
    datasets_folder,
    get_backend,
    load_config,
    model_asset,
    training_dags,
)

version: str = airflow_nnunet.__version__
config: TrainingConfig = load_config(Path("liver.yaml"))
own = TrainingConfig(dag_id="own", dataset=DatasetSection(id=4, name="Hip", source="/in"), train=TrainSection(folds=[0, "all"]))
dag = build_training_dag(own)
dags: list[str] = [one.dag_id for one in training_dags(datasets_folder(__file__)).values()]
uri: str = model_asset("Dataset004_Hippocampus").uri
delay: dt.timedelta = NnunetRetryPolicy(gpu_oom_tries=1).delay(1)
backend: Backend = get_backend("local")
fetch = DicomWebRetrieveOperator(task_id="fetch", study="1.2.3", folder="/in")
train = TrainFoldOperator(task_id="train", dataset=4, configuration="2d", fold=0, retry_policy=NnunetRetryPolicy())
"""
WRONG = """
from airflow_nnunet import TrainFoldOperator

TrainFoldOperator(task_id="t", dataset=4, configuration=2, fold=0)
TrainFoldOperator.partial(task_id="t", dataset=4).expnd(fold=[0])
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the built wheel; everything else is looked up in this one's packages, the editable install is not."""
    folder = tmp_path_factory.mktemp("types")
    uv = [sys.executable, "-m", "uv", "--quiet"]
    subprocess.run([*uv, "build", "--wheel", "--out-dir", folder, PROJECT], check=True, capture_output=True)
    subprocess.run([*uv, "venv", "--python", sys.executable, folder / "venv"], check=True, capture_output=True)
    found: Path = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*uv, "pip", "install", "--python", found, "--no-deps", wheel], check=True, capture_output=True)
    (packages,) = (folder / "venv").glob("lib/python3*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return found


def test_the_examples_and_an_authors_own_dag_have_types(python: Path, tmp_path: Path) -> None:
    shown = [snippet.text for snippet in snippets() if snippet.language == "python"]
    assert len(shown) >= 3
    for number, text in enumerate(shown):
        (tmp_path / f"shown_{number}.py").write_text(text)
    for name, text in (("right", RIGHT), ("public", PUBLIC), ("wrong", WRONG)):
        (tmp_path / f"{name}.py").write_text(text)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        python,
        "--cache-dir",
        tmp_path / "cache",
        "--no-error-summary",
    ]
    done = subprocess.run([*command, *EXAMPLES, *sorted(tmp_path.glob("*.py"))], cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("wrong.py:")] == [], done.stderr
    assert re.search(r'wrong\.py:4: error: .*"configuration".*incompatible type "int"', done.stdout)
    assert re.search(r'wrong\.py:5: error: "OperatorPartial" has no attribute "expnd"', done.stdout)
    assert len(lines) <= 3
