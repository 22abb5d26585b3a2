"""The whole pipeline in containers of the built image, under a real scheduler, and what a killed task and a user's act do to it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.prediction_api.rest_client import wait_until
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices.leases import Ledger
from support.containers import UID, container_of, give_workspace
from support.images import Image
from support.stack import TINY, Site, epochs_done, epochs_reported, kill

pytest_plugins = ["support.image_fixtures"]
pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(1500)]  # the first test waits for the image
DATASET = "Dataset901_Contained"
HELD, DEFERRED = "nnunet_contained_held", "nnunet_contained_deferred"
STEPS = ("register", "preprocess", "train", "find_best", "predict")
CONNECTION = "containers"
DATASET_FILE = """
dataset: {{id: 901, name: Contained, source: {source}, layout: decathlon, holdout_fraction: 0.2}}
preprocess:
  configurations: [2d_tiny]
  folds: 2
  custom_configurations:{tiny}
train: {{folds: [0], epochs: 8, iterations: 20, val_iterations: 1, optimizer: adamw, initial_lr: 0.003, mirroring: false, seed: 1}}
select: {{ensembles: false, promote: always}}
resources: {{shm_mib: 512, grace_s: 20}}
retries: 1
nnunet_conn_id: {connection}
deferrable: {deferrable}
"""


@dataclass(frozen=True, kw_only=True)
class Yard:
    """The running Airflow with a workspace whose jobs run in containers."""

    site: Site
    image: Image
    workspace: Workspace

    def containers(self) -> list[str]:
        """Names of containers of this workspace's jobs, ended ones included; an engine that was lent has others too."""
        jobs = [path.name for path in Path(self.workspace.jobs).iterdir()]
        return [name for name in self.image.engine.containers() if any(name.startswith(f"nnunet-{job}-") for job in jobs)]

    def train(self, dag_id: str, conf: dict[str, Any]) -> tuple[str, JobDir]:
        """Trigger a run and wait until its training has finished an epoch; returns run id and job."""
        client = self.site.stack.client
        client.wait_for_dag(dag_id, timeout_s=120)
        run_id = client.trigger(dag_id, conf)
        client.wait_for_task(dag_id, run_id, "train", "running", "deferred", map_index=0, timeout_s=600)
        job = self.site.job(dag_id, run_id, "train", map_index=0)
        wait_until(
            lambda: epochs_done(job) >= 1 or job.state().phase.final,
            timeout_s=300,
            what=lambda: f"no epoch yet: {job.state()}; {self.containers()}",
        )
        assert not job.state().phase.final, job.read_log(0)[0].decode()[-3000:]
        return run_id, job


@pytest.fixture(scope="module")
def yard(site: Site, nnunet_image: Image) -> Iterator[Yard]:
    """A connection that sends jobs into containers of the image, and two DAGs that use it."""
    source = site.root / "incoming"
    workspace = Workspace.below(site.root / "contained", input_roots=(str(source),))
    give_workspace(workspace)
    options = {
        "workspace": str(site.root / "contained"),
        "input_roots": [str(source)],
        "backend": "docker",
        "backend_options": {"image": nnunet_image.name, "docker_url": nnunet_image.engine.url, "pull": "never"},
    }
    client = site.stack.client
    body = {"connection_id": CONNECTION, "conn_type": "nnunet", "extra": json.dumps(options)}
    client.request("POST", "connections", json=body)
    files = []
    for name, deferrable in (("contained_held", "false"), ("contained_deferred", "true")):
        files.append(site.datasets / f"{name}.yaml")
        text = DATASET_FILE.format(source=source / "phantom", tiny=TINY, connection=CONNECTION, deferrable=deferrable)
        files[-1].write_text(text)
    site.parse_again()
    yield Yard(site=site, image=nnunet_image, workspace=workspace)
    for path in files:
        path.unlink()
    client.request("DELETE", f"connections/{CONNECTION}")


def test_fault_01_and_12_the_pipeline_runs_in_containers_and_a_killed_task_finds_its_container_again(yard: Yard) -> None:
    client, engine = yard.site.stack.client, yard.image.engine
    run_id, job = yard.train(HELD, {})
    running = engine.inspect(container_of(engine, job))
    assert running["State"]["Running"]
    assert running["Config"]["User"] == f"{UID}:{UID}"
    assert running["HostConfig"]["ReadonlyRootfs"]
    assert running["HostConfig"]["NetworkMode"] == "none"
    _, task = yard.site.task_processes()
    kill(task, number=signal.SIGKILL)

    state = client.wait_for_run(HELD, run_id, timeout_s=500)
    states = {task: state for (task, _), state in client.states(HELD, run_id).items()}
    assert state == "success", states
    assert {task: states[task] for task in STEPS} == dict.fromkeys(STEPS, "success")
    assert client.task_instance(HELD, run_id, "train", 0)["try_number"] == 2, "the killed task was tried again"
    assert job.state().attempt == 1, "and found its container: nobody began the job anew"
    assert epochs_reported(job) == list(range(1, 9))
    outcome = job.result()
    assert outcome is not None
    assert client.xcom(HELD, run_id, "train", map_index=0) == outcome["result"]
    image = yard.image.inspect()["Id"]
    for step in STEPS:
        record = yard.site.job(HELD, run_id, step, map_index=0 if step in ("train", "predict") else -1).result()
        assert record is not None, step
        assert record["container"]["image_digest"] == image, step
        assert record["container"]["exit_code"] == 0, step
    best = client.xcom(HELD, run_id, "find_best")
    assert yard.workspace.champion(DATASET) == best["model"]
    predictions = json.loads(Path(client.xcom(HELD, run_id, "predict", map_index=0)["predictions"]).read_text())
    held_out = {case for case, entry in yard.workspace.manifest(DATASET)["cases"].items() if entry["split"] == "holdout"}
    assert held_out
    assert {case: entry["status"] for case, entry in predictions["cases"].items()} == dict.fromkeys(held_out, "predicted")
    owners = {path.stat().st_uid for root in (yard.workspace.raw, yard.workspace.results) for path in Path(root).rglob("*")}
    assert owners == {UID}, "what containers make belongs to the data's owner, and nothing to root"
    assert not yard.containers(), "ended containers are removed"


def test_fault_13_a_training_marked_failed_stops_its_container_and_keeps_a_checkpoint(yard: Yard) -> None:
    client, engine = yard.site.stack.client, yard.image.engine
    run_id, job = yard.train(DEFERRED, {"epochs": 500})
    container = container_of(engine, job)
    client.set_state(DEFERRED, run_id, "train", "failed", map_index=0)
    wait_until(lambda: container not in engine.containers(everything=False), timeout_s=30, what=lambda: f"still running: {job.state()}")
    wait_until(lambda: job.state().phase is Phase.FAILED, timeout_s=5, what=lambda: str(job.state()))
    failure = job.failure()
    assert failure is not None
    assert failure.cancelled
    folds = sorted((Path(yard.workspace.results) / ".versions").glob(f"*/{DATASET}/*/fold_0"), key=lambda path: path.stat().st_mtime)
    assert list(folds[-1].glob("checkpoint*"))
    assert not Ledger(yard.workspace.leases).holders(), "the lease is free"
    client.wait_for_task(DEFERRED, run_id, "train", "failed", timeout_s=60, map_index=0)
