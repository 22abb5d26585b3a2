"""The same DAGs under CeleryExecutor: PostgreSQL, Redis, and two workers that stand for two GPU hosts; what their failures cost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from airflow_nnunet.prediction_api.rest_client import FINISHED_TASK, RestError, wait_until
from devtools.testbed.servers import Server, running_postgres, running_redis
from nnunet_jobs.contract.job.folder import JobDir
from support.celery_cluster import EPOCHS, QUEUED_S, WORKERS, Cluster
from support.stack import epochs_reported, job_processes

pytestmark = [pytest.mark.e2e, pytest.mark.training]

OUTAGE_S = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running Airflow with two workers, two slots in the pool, and a phantom to work on."""
    with running_postgres() as postgres, running_redis() as redis:
        root = tmp_path_factory.mktemp("celery")
        source = root / "incoming" / "phantom"
        command = [sys.executable, "-m", "nnunet_jobs", "phantom", str(source), "--cases", "10", "--seed", "0"]
        subprocess.run(command, check=True, capture_output=True)
        cluster = Cluster(root, source, postgres, redis)
        with cluster.stack as stack:
            stack.client.set_pool("gpu", 2)
            yield cluster
        assert not stack.processes(), "something of the private Airflow still runs"


@pytest.fixture(scope="module")
def prepared(cluster: Cluster) -> Cluster:
    """The same with the dataset registered and preprocessed."""
    cluster.prepare()
    return cluster


def finish(cluster: Cluster, dag_id: str, run_id: str, job: JobDir) -> None:
    """Wait for the run's good end, and see that exactly one training made it, without a gap or a repetition."""

    def over() -> bool:
        cluster.stack.restart_ended()  # the part of a service manager
        with suppress(RestError, httpx.TransportError):  # no database yet
            return cluster.stack.client.task_instance(dag_id, run_id, "train")["state"] in FINISHED_TASK
        return False

    wait_until(over, timeout_s=180, what=lambda: f"{dag_id}: {cluster.stack.client.states(dag_id, run_id)}, job {job.state()}")
    assert cluster.stack.client.wait_for_run(dag_id, run_id, timeout_s=30) == "success"
    assert job.state().attempt == 1, "nobody began the job again"
    assert job.cancel_requested() is None
    assert epochs_reported(job) == list(range(1, EPOCHS + 1))
    done = job.result()
    assert done is not None
    assert cluster.stack.client.xcom(dag_id, run_id, "train") == done["result"], "the task's result is the job's"
    assert not job_processes(job)


def out_of_order(server: Server, cluster: Cluster, jobs: list[JobDir]) -> None:
    """Take a server away for a minute. Meanwhile the trainings go on, and end, so that their tasks have news that nobody can take."""
    server.stop()
    began = time.monotonic()
    cluster.go.touch()
    for job in jobs:
        wait_until(lambda job=job: job.state().phase.final, timeout_s=120, what=lambda job=job: f"job {job.state()}")
    wait_until(lambda: time.monotonic() - began > OUTAGE_S, timeout_s=OUTAGE_S + 5, what=lambda: "the end of the outage")
    server.start()


def test_the_pipeline_spreads_its_folds_over_both_workers_and_the_pool_holds(cluster: Cluster) -> None:
    client = cluster.stack.client
    client.wait_for_dag("pipeline")
    run_id = client.trigger("pipeline")
    hosts: dict[int, set[str]] = {}
    queues: set[str] = set()
    most = 0

    def look() -> None:
        nonlocal most
        trainings = [item for item in client.task_instances("pipeline", run_id) if item["task_id"].endswith(".train")]
        for item in trainings:
            queues.add(item["queue"])
            if item["state"] in ("running", "deferred"):
                hosts.setdefault(item["map_index"], set()).add(item["hostname"])
        most = max(most, sum(item["state"] in ("queued", "running", "deferred") for item in trainings))

    assert client.wait_for_run("pipeline", run_id, timeout_s=400, progress=look) == "success", client.states("pipeline", run_id)
    assert set(client.states("pipeline", run_id).values()) == {"success"}
    assert set(hosts) == {0, 1, 2}
    assert set().union(*hosts.values()) == set(WORKERS), "both workers took folds"
    assert queues == {"gpu"}
    assert most == 2, "as many tasks as the pool has slots"
    spans = []
    for index in range(3):
        lines = cluster.job("pipeline", run_id, "nnunet.train", map_index=index).read_metrics()[0]
        spans.append((lines[0]["t"], lines[-1]["t"]))
    for moment, _ in spans:
        assert sum(begin <= moment <= end for begin, end in spans) <= 2, "as many jobs as the pool has slots"
    assert cluster.workspace.champion("Dataset900_Phantom") == client.xcom("pipeline", run_id, "nnunet.find_best")["model"]


def test_fault_46_and_01_a_redelivered_task_is_ignored_and_a_killed_workers_task_attaches_on_the_other_worker(prepared: Cluster) -> None:
    client = prepared.stack.client
    run_id, job = prepared.start_waiting_training("held", seed=10)
    host = prepared.host_of("held", run_id)
    other = next(name for name in WORKERS if name != host)
    wait_until(
        lambda: "ignoring redelivered message" in prepared.stack.log_file(other).read_text(),
        timeout_s=90,
        what=lambda: "the broker delivered nothing twice",
    )
    task = client.task_instance("held", run_id, "train")
    assert (task["state"], task["try_number"], task["hostname"]) == ("running", 1, host)
    prepared.stack.kill_with_children(host)
    wait_until(
        lambda: (task := client.task_instance("held", run_id, "train"))["try_number"] == 2 and task["state"] == "running",
        timeout_s=90,
        what=lambda: f"no retry: {client.states('held', run_id)}",
    )
    assert prepared.host_of("held", run_id) == other
    prepared.stack.restart(host)
    prepared.go.touch()
    finish(prepared, "held", run_id, job)


def test_a_broker_that_is_away_for_a_minute_costs_nothing(prepared: Cluster) -> None:
    trainings = prepared.start_both(seed=20)
    out_of_order(prepared.redis, prepared, [job for _, _, job in trainings])
    for training in trainings:
        finish(prepared, *training)
    tries = {dag_id: prepared.stack.client.task_instance(dag_id, run_id, "train")["try_number"] for dag_id, run_id, _ in trainings}
    assert tries["deferred_on_a"] == 1, "sending it was tried until the broker was back"


def test_a_broker_that_lost_its_data_delays_the_tasks_that_it_held(prepared: Cluster) -> None:
    client = prepared.stack.client
    run_id, job = prepared.start_waiting_training("deferred_on_a", seed=30)
    client.wait_for_task("deferred_on_a", run_id, "train", "deferred", timeout_s=60)  # it waits in its worker for some seconds first
    prepared.stack.kill_with_children("worker-a")  # so that nobody takes the task from its queue
    prepared.go.touch()
    client.wait_for_task("deferred_on_a", run_id, "train", "queued", timeout_s=60)
    prepared.redis.kill()
    prepared.redis.forget()
    prepared.redis.start()
    prepared.stack.restart("worker-a")
    wait_until(
        lambda: client.task_instance("deferred_on_a", run_id, "train")["state"] in FINISHED_TASK,
        timeout_s=QUEUED_S + 90,
        what=lambda: f"not sent again: {client.states('deferred_on_a', run_id)}",
    )
    finish(prepared, "deferred_on_a", run_id, job)
    task = client.task_instance("deferred_on_a", run_id, "train")
    assert (task["try_number"], task["hostname"]) == (1, "worker-a"), "it came back to its queue, on the same try"


def test_a_database_that_is_away_for_a_minute_costs_no_training(prepared: Cluster) -> None:
    trainings = prepared.start_both(seed=40)
    out_of_order(prepared.postgres, prepared, [job for _, _, job in trainings])
    for training in trainings:
        finish(prepared, *training)


def test_the_doctor_finds_broker_and_workers(cluster: Cluster) -> None:
    text = cluster.doctor()
    for worker in WORKERS:
        assert f"ok    celery worker: celery@{worker} serves default, gpu, gpu-{worker[-1]}" in text
    assert "ok    celery broker: redis://" in text
    assert cluster.redis.password not in text
    assert "ok    celery publishing" in text
    assert "warn  celery visibility_timeout: 15" in text, "short on purpose here"
