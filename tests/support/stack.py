"""One real Airflow for all end-to-end tests, and what they do to it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil

from airflow_nnunet.prediction_api.rest_client import AirflowClient, RestError, wait_until
from devtools.stack import Stack
from devtools.stack_config import password_file
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.workspace import Workspace
from support.jobs import TESTS
from support.teams import write_teams

DATASET = "Dataset900_Phantom"
TINY = """
    2d_tiny:
      inherits_from: 2d
      batch_size: 4
      architecture:
        arch_kwargs: {features_per_stage: [8, 16, 32, 64], n_conv_per_stage: [1, 1, 1, 1], n_conv_per_stage_decoder: [1, 1, 1]}
"""
DATASET_FILE = """
dataset: {{id: 900, name: Phantom, source: {source}, layout: decathlon, holdout_fraction: 0.2}}
preprocess:
  configurations: [2d_tiny]
  folds: 2
  custom_configurations:{tiny}
train: {{epochs: 2, iterations: 20, val_iterations: 2, optimizer: adamw, initial_lr: 0.003, mirroring: false, seed: 1}}
select: {{ensembles: false, promote: always}}
retries: 1
schedule: "0 {hour} * * *"
"""
PROJECT_DAGS = (
    "nnunet_training.py", "nnunet_dataset_files.py", "nnunet_models.py", "nnunet_prediction.py", "nnunet_predictions.py",
    "nnunet_dicom_pull.py",
)  # fmt: skip
EPOCHS, WAITING = 4, "WaitsInEpochThree"  # of a training that waits until it may go on
COMMON_QUOTA, QUEUE_LIMIT = 6, 8  # of the prediction API
E2E = TESTS / "e2e"
FAST = {
    "core.parallelism": "4",
    "core.simple_auth_manager_users": "admin:admin,alice:user,bob:user,carol:viewer",  # bob is a member of the team late
    "scheduler.task_instance_heartbeat_timeout": "15",
    "scheduler.task_instance_heartbeat_timeout_detection_interval": "2",
    "workers.min_heartbeat_interval": "2",
    "dag_processor.min_file_process_interval": "300",  # parsing again and again takes a core; see Site.parse_again
}


class Site:
    """A private Airflow with a workspace, a folder of dataset files, the project's own DAGs and those of ``tests/e2e/dags``.

    All end-to-end tests share it, one after the other. A test that needs another setting gives its tasks a connection of type
    ``nnunet`` (``nnunet_conn_id``), which overrides section [nnunet]. DAG files and trainers find the site by ``E2E_ROOT``.
    """

    def __init__(self, root: Path, source: Path) -> None:
        self.root = root
        self.datasets = root / "datasets"
        self.dags = root / "dags"
        self.go = root / "go"
        self.server_socket = root / "serve.sock"
        self.datasets.mkdir()
        self.dags.mkdir()
        for file in (*(TESTS.parent / "dags" / name for name in PROJECT_DAGS), *sorted((E2E / "dags").glob("*.py"))):
            shutil.copyfile(file, self.dags / file.name)
        self.gates = root / "gates"
        self.gates.mkdir()
        write_teams(root, root / "include" / "teams")
        half_a_day_away = (dt.datetime.now(dt.UTC).hour + 12) % 24
        (self.datasets / "phantom.yaml").write_text(DATASET_FILE.format(source=source, tiny=TINY, hour=half_a_day_away))
        self.workspace = Workspace.below(root / "work", input_roots=(str(source.parent),), cpu_slots=2)
        environment = {
            "E2E_ROOT": str(root),
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "plugins"), str(TESTS)]),
            "AIRFLOW__NNUNET__WORKSPACE": str(root / "work"),
            "AIRFLOW__NNUNET__INPUT_ROOTS": str(source.parent),
            "AIRFLOW__NNUNET__TRAINER_PATHS": str(E2E / "trainers"),
            "AIRFLOW__NNUNET__DATASETS": str(self.datasets),
            "AIRFLOW__NNUNET__CPU_SLOTS": "2",
            "AIRFLOW__NNUNET__POLL_INTERVAL": "0.5",
            "AIRFLOW__NNUNET__LOST_AFTER": "30",
            "AIRFLOW__NNUNET__PREDICTOR_SERVERS": f"unix:{self.server_socket}",
            "AIRFLOW__NNUNET__PREDICTIONS_QUOTA": str(COMMON_QUOTA),
            "AIRFLOW__NNUNET__PREDICTIONS_LIMIT": str(QUEUE_LIMIT),
            "AIRFLOW__NNUNET__PREDICTIONS_UPLOAD_MIB": "8",
        }
        self.stack = Stack(root / "airflow", dags=self.dags, settings=FAST, environment=environment)

    def start_training(
        self, dag_id: str, *, epochs: int, seed: int, until_epoch: int = 2, trainer: str = "nnUNetTrainer"
    ) -> tuple[str, JobDir]:
        """Trigger one training and wait until it has finished an epoch or more; returns run id and job."""
        client = self.stack.client
        client.wait_for_dag(dag_id)
        run_id = client.trigger(dag_id, {"epochs": epochs, "seed": seed, "trainer": trainer})
        job = self.job(dag_id, run_id, "train")
        wait_until(
            lambda: epochs_done(job) >= until_epoch or job.state().phase.final,
            timeout_s=120,
            what=lambda: f"no epoch yet: {job.state()}",
        )
        assert not job.state().phase.final, job.read_log(0)[0].decode()[-3000:]
        return run_id, job

    def start_waiting_training(self, dag_id: str, *, seed: int) -> tuple[str, JobDir]:
        """One training of :data:`EPOCHS` epochs that stays in its third until :meth:`let_go`; returns run id and job."""
        self.go.unlink(missing_ok=True)
        return self.start_training(dag_id, epochs=EPOCHS, seed=seed, trainer=WAITING)

    def let_go(self) -> None:
        """Let the waiting training go on."""
        self.go.touch()

    def user(self, name: str) -> AirflowClient:
        """A client of one of the users; whoever takes it closes it."""
        password = json.loads(password_file(self.stack.home).read_text())[name]
        return AirflowClient(self.stack.url, username=name, password=password)

    def parse_again(self) -> None:
        """Have all DAG files parsed now and not after the interval; a file that was touched is new to Airflow."""
        for file in self.dags.iterdir():
            os.utime(file)

    def prepare(self) -> None:
        """Register and preprocess the phantom, for tests that only train."""
        client = self.stack.client
        client.wait_for_dag("prepare")
        run_id = client.trigger("prepare")
        state = client.wait_for_run("prepare", run_id, timeout_s=180)
        assert state == "success", client.states("prepare", run_id)

    def job(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1, timeout_s: float = 60) -> JobDir:
        """The job of a task, as soon as the task has told about it."""
        found: dict[str, Any] = {}

        def told() -> bool:
            nonlocal found
            with contextlib.suppress(RestError):
                found = self.stack.client.xcom(dag_id, run_id, task_id, map_index=map_index, key="nnunet_job")
            return bool(found)

        wait_until(told, timeout_s=timeout_s, what=lambda: f"{task_id} tells no job: {self.stack.client.states(dag_id, run_id)}")
        return JobDir(found["path"])

    def task_processes(self) -> tuple[int, int]:
        """(supervisor, task process) of the one task that runs now."""
        scheduler = self.stack.pid("scheduler")
        mine = {pid: _parent(pid) for pid in self.stack.processes()}
        pairs = [(parent, pid) for pid, parent in mine.items() if mine.get(parent) == scheduler]
        assert len(pairs) == 1, f"expected one running task, found {pairs}"
        return pairs[0]


def epochs_done(job: JobDir) -> int:
    """Newest finished epoch that a training reported."""
    return max((record["done"] for record in job.read_metrics()[0] if record["phase"] == "train" and "done" in record), default=0)


def epochs_reported(job: JobDir) -> list[int]:
    """Every finished epoch in the order of the reports; a doubled training would show as a number twice."""
    return [record["done"] for record in job.read_metrics()[0] if record["phase"] == "train" and "done" in record]


def job_processes(job: JobDir) -> list[int]:
    """Pids whose command line names the job's directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(job.path) in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def kill(*pids: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to processes that this test's stack started."""
    for pid in pids:
        os.kill(pid, number)


def _parent(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).ppid()
    return 0
