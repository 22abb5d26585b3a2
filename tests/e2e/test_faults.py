"""What Airflow's failures and users' acts do to a running training, under a real scheduler."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from airflow_nnunet.rest_client import wait_until
from nnunet_jobs.contract.jobdir import JobDir, Phase
from nnunet_jobs.leases import Ledger
from support.stack import DATASET, EPOCHS, WAITING, Site, epochs_done, epochs_reported, job_processes, kill

pytestmark = [pytest.mark.e2e, pytest.mark.training]


def checkpoints(job: JobDir, site: Site) -> list[Path]:
    fold = job.spec().params["fold"]
    newest = max((Path(site.workspace.results) / ".versions").glob(f"*/{DATASET}/*/fold_{fold}"), key=lambda path: path.stat().st_mtime)
    return list(newest.glob("checkpoint*"))


def finish(site: Site, dag_id: str, run_id: str, job: JobDir) -> None:
    """Let the training go on, wait for the run's good end, and see that exactly one training made it, without a gap or a repetition."""
    assert job.state().phase is Phase.RUNNING, "the training outlived the fault"
    site.let_go()
    state = site.stack.client.wait_for_run(dag_id, run_id, timeout_s=180)
    assert state == "success", site.stack.client.log(dag_id, run_id, "train")
    assert job.state().attempt == 1, "nobody began the job again"
    assert not job.earlier_failures()
    assert sorted(set(epochs_reported(job))) == list(range(1, EPOCHS + 1))
    result = site.stack.client.xcom(dag_id, run_id, "train")
    done = job.result()
    assert done is not None
    assert result == done["result"], "the task's result is the job's"
    assert not job_processes(job)


def test_fault_01_and_12_worker_killed_while_training_the_retry_attaches_and_has_the_result(prepared: Site) -> None:
    run_id, job = prepared.start_waiting_training("held", seed=1)
    kill(*prepared.task_processes())
    client = prepared.stack.client
    wait_until(
        lambda: (found := client.task_instance("held", run_id, "train"))["try_number"] == 2 and found["state"] == "running",
        timeout_s=90,
        what=lambda: f"no retry: {client.states('held', run_id)}",
    )
    finish(prepared, "held", run_id, job)


def test_fault_02_worker_stopped_for_a_deploy_detaches_and_does_not_cancel(prepared: Site) -> None:
    run_id, job = prepared.start_waiting_training("held", seed=2)
    _, task = prepared.task_processes()
    kill(task, number=signal.SIGTERM)
    for state in ("up_for_reschedule", "running"):
        prepared.stack.client.wait_for_task("held", run_id, "train", state, timeout_s=90)
    finish(prepared, "held", run_id, job)
    assert job.cancel_requested() is None


def test_fault_03_scheduler_killed_and_restarted_starts_no_second_trainer(prepared: Site) -> None:
    run_id, job = prepared.start_waiting_training("deferred", seed=3)
    prepared.stack.kill("scheduler")
    prepared.stack.restart("scheduler")
    finish(prepared, "deferred", run_id, job)


def test_fault_04_triggerer_killed_and_restarted_goes_on_watching(prepared: Site) -> None:
    run_id, job = prepared.start_waiting_training("deferred", seed=4)
    prepared.stack.kill("triggerer")
    prepared.stack.restart("triggerer")
    finish(prepared, "deferred", run_id, job)
    assert job.cancel_requested() is None


def test_fault_11_clearing_a_finished_training_looks_again_and_finds_it_complete(prepared: Site) -> None:
    client = prepared.stack.client
    client.wait_for_dag("deferred")
    run_id = client.trigger("deferred", {"epochs": EPOCHS, "seed": 4, "trainer": WAITING})  # what the test before has trained
    assert client.wait_for_run("deferred", run_id, timeout_s=120) == "success"
    first = prepared.job("deferred", run_id, "train")
    tries = client.task_instance("deferred", run_id, "train")["try_number"]
    client.clear("deferred", run_id, "train")
    wait_until(
        lambda: (
            client.task_instance("deferred", run_id, "train")["try_number"] > tries and client.run_state("deferred", run_id) == "success"
        ),
        timeout_s=120,
        what=lambda: f"not run again: {client.states('deferred', run_id)}",
    )
    second = prepared.job("deferred", run_id, "train")
    assert second.job_id != first.job_id, "a clear is a new job"
    assert client.xcom("deferred", run_id, "train")["already_done"], "which finds the work done by its content, and says so"


@pytest.mark.parametrize("dag_id", ["deferred", "held"])
def test_fault_13_a_training_marked_failed_is_stopped_and_keeps_its_checkpoint(prepared: Site, dag_id: str) -> None:
    run_id, job = prepared.start_training(dag_id, epochs=500, seed=13)
    prepared.stack.client.set_state(dag_id, run_id, "train", "failed")
    wait_until(lambda: not job_processes(job), timeout_s=30, what=lambda: f"still running: {job_processes(job)}, {job.state()}")
    wait_until(lambda: job.state().phase is Phase.FAILED, timeout_s=5, what=lambda: str(job.state()))
    assert checkpoints(job, prepared)
    assert not Ledger(prepared.workspace.leases).holders(), "the lease is free"
    assert prepared.stack.client.task_instance(dag_id, run_id, "train")["state"] == "failed"


def test_fault_14_a_training_over_its_time_limit_is_stopped_and_keeps_its_checkpoint(prepared: Site) -> None:
    run_id, job = prepared.start_training("limited", epochs=500, seed=14, until_epoch=1)
    wait_until(lambda: not job_processes(job), timeout_s=90, what=lambda: f"still running: {job_processes(job)}, {job.state()}")
    assert epochs_done(job) >= 1
    assert checkpoints(job, prepared)
    assert not Ledger(prepared.workspace.leases).holders()
    prepared.stack.client.set_state("limited", run_id, "train", "failed")
