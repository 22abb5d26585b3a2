"""A private Airflow under CeleryExecutor: real PostgreSQL and Redis, and two workers that stand for two GPU hosts."""

from __future__ import annotations

import os
from pathlib import Path
from string import Template

from airflow_nnunet.prediction_api.rest_client import wait_until
from devtools.stack import PROJECT, Stack
from devtools.stack_components import CeleryWorker
from devtools.testbed.servers import Postgres, Redis
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.workspace import Workspace
from support.jobs import TESTS
from support.stack import DATASET, FAST, TINY, Site, epochs_done

WORKERS = ("worker-a", "worker-b")
EPOCHS = 4
VISIBILITY_S = 15
QUEUED_S = 40
# A trainer that stays in its third epoch until the test lets it go on: "while training" is a state, not a time.
TRAINER = """
import time
from pathlib import Path
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class WaitsInEpochThree(nnUNetTrainer):
    def on_epoch_start(self):
        while self.current_epoch == 2 and not Path("$go").exists():
            time.sleep(0.05)
        super().on_epoch_start()
"""
DATASET_FILE = """
dataset: {id: 900, name: Phantom, source: $source, layout: decathlon, holdout_fraction: 0.2}
preprocess:
  configurations: [2d_tiny]
  folds: 3
  custom_configurations:$tiny
train: {epochs: 2, iterations: 10, val_iterations: 1, optimizer: adamw, initial_lr: 0.003, mirroring: false, seed: 1}
select: {ensembles: false, promote: always}
retries: 1
"""
# The project's own pipeline with its tasks on a queue, and single trainings: one is held in a worker of any host, one is deferred.
DAGS = """
from datetime import timedelta
from pathlib import Path
from airflow.sdk import DAG
from airflow_nnunet.pipelines.dag_builder import training_task_group
from airflow_nnunet.pipelines.dataset_config import load_config
from airflow_nnunet.operators import TrainFoldOperator

with DAG("pipeline", schedule=None, default_args={"queue": "gpu"}) as pipeline:
    training_task_group(load_config(Path("$datasets/phantom.yaml")))

def training(name, **fields):
    with DAG(name, schedule=None, params={"seed": 0}, render_template_as_native_obj=True) as dag:
        TrainFoldOperator(
            task_id="train", dataset="$dataset", configuration="2d_tiny", fold=0, epochs=$epochs, iterations=5, val_iterations=1,
            trainer="WaitsInEpochThree", optimizer="adamw", initial_lr=3e-3, mirroring=False, seed="{{ params.seed }}",
            hang_s=1800, retries=3, retry_delay=timedelta(seconds=1), **fields,
        )
    return dag

held = training("held", queue="gpu", deferrable=False)
held_on_b = training("held_on_b", queue="gpu-b", deferrable=False)
deferred_on_a = training("deferred_on_a", queue="gpu-a")
"""


class Cluster(Site):
    """A site whose tasks run on Celery workers.

    Args:
        root: Folder of everything.
        source: Dataset in Decathlon layout.
        postgres: Started PostgreSQL server.
        redis: Started Redis server.
    """

    def __init__(self, root: Path, source: Path, postgres: Postgres, redis: Redis) -> None:
        self.root, self.postgres, self.redis = root, postgres, redis
        self.datasets, self.dags, trainers = root / "datasets", root / "dags", root / "trainers"
        for folder in (self.datasets, self.dags, trainers):
            folder.mkdir()
        self.go = root / "go"
        (trainers / "waiting.py").write_text(Template(TRAINER).substitute(go=self.go))
        (self.dags / "cluster.py").write_text(Template(DAGS).substitute(datasets=self.datasets, dataset=DATASET, epochs=EPOCHS))
        (self.datasets / "phantom.yaml").write_text(Template(DATASET_FILE).substitute(source=source, tiny=TINY))
        self.workspace = Workspace.below(root / "work", input_roots=(str(source.parent),), cpu_slots=2)
        settings = FAST | {
            "core.hostname_callable": "support.host_name.host_name",
            "celery.broker_url": redis.url,
            "celery_broker_transport_options.visibility_timeout": str(VISIBILITY_S),
            "celery_broker_transport_options.unacked_restore_interval": "1",
            "celery_broker_transport_options.unacked_restore_throttle": "1",
            "scheduler.task_queued_timeout": str(QUEUED_S),
            "scheduler.task_queued_timeout_check_interval": "5",
            "nnunet.workspace": str(root / "work"),
            "nnunet.input_roots": str(source.parent),
            "nnunet.trainer_paths": str(trainers),
            "nnunet.cpu_slots": "2",
            "nnunet.poll_interval": "0.5",
        }
        workers = [
            CeleryWorker.on(
                "gpu", f"gpu-{name[-1]}", "default", name=name, broker=redis.url, concurrency=1, environment={"NNUNET_TEST_HOST": name}
            )
            for name in WORKERS
        ]
        self.stack = Stack(
            root / "airflow",
            dags=self.dags,
            settings=settings,
            environment={"PYTHONPATH": os.pathsep.join([str(PROJECT / "plugins"), str(TESTS)])},
            executor="CeleryExecutor",
            database=postgres.create_database("airflow"),
            extra=workers,
        )

    def prepare(self) -> None:
        """Run the pipeline, unless a test has done so before."""
        if self.workspace.champion(DATASET) is None:
            client = self.stack.client
            client.wait_for_dag("pipeline")
            run_id = client.trigger("pipeline")
            assert client.wait_for_run("pipeline", run_id, timeout_s=400) == "success", client.states("pipeline", run_id)

    def start_both(self, *, seed: int) -> list[tuple[str, str, JobDir]]:
        """A training that is held in a worker and a deferred one, both in their third epoch; DAG id, run id and job of each."""
        # Two seeds, or the second would find the first one's content locked and wait for it.
        return [
            (dag_id, *self.start_waiting_training(dag_id, seed=seed + more)) for more, dag_id in enumerate(("held_on_b", "deferred_on_a"))
        ]

    def doctor(self) -> str:
        """What ``airflow nnunet doctor`` says here."""
        return self.stack.airflow("nnunet", "doctor")

    def start_waiting_training(self, dag_id: str, *, seed: int) -> tuple[str, JobDir]:
        """Trigger a training and wait until it waits in its third epoch; returns run id and job."""
        self.go.unlink(missing_ok=True)
        self.stack.client.wait_for_dag(dag_id)
        run_id = self.stack.client.trigger(dag_id, {"seed": seed})
        job = self.job(dag_id, run_id, "train", timeout_s=120)
        wait_until(lambda: epochs_done(job) >= 2 or job.state().phase.final, timeout_s=240, what=lambda: f"no second epoch: {job.state()}")
        assert not job.state().phase.final, job.read_log(0)[0].decode()[-3000:]
        return run_id, job

    def host_of(self, dag_id: str, run_id: str) -> str:
        """Host on which the training's task runs or ran last."""
        return str(self.stack.client.task_instance(dag_id, run_id, "train")["hostname"])
