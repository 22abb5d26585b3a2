"""What Airflow's failures and users' acts do to a running training, under a real scheduler."""

from __future__ import annotations

import datetime as dt
import itertools
import signal
import statistics
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from airflow_nnunet.prediction_api.rest_client import wait_until
from airflow_nnunet.settings.workspace_memory import variable_of
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.marker import read_marker
from nnunet_jobs.devices.leases import Ledger
from support.stack import DATASET, EPOCHS, WAITING, Site, epochs_done, epochs_reported, job_processes, kill

_RESUMES_S = 60.0  # row 4 of the fault matrix

pytestmark = [pytest.mark.e2e, pytest.mark.training]


def checkpoints(job: JobDir, site: Site) -> list[Path]:
    fold = job.spec().params["fold"]
    newest = max((Path(site.workspace.results) / ".versions").glob(f"*/{DATASET}/*/fold_{fold}"), key=lambda path: path.stat().st_mtime)
    return list(newest.glob("checkpoint*"))


def finish(site: Site, dag_id: str, run_id: str, job: JobDir) -> None:
    """Let the training go on, wait for the run's good end, and see that exactly one training made it, without a gap or a repetition."""
    assert job.state().phase is Phase.RUNNING, "the training outlived the fault"
    site.let_go()
    check_end(site, dag_id, run_id, job)


def check_end(site: Site, dag_id: str, run_id: str, job: JobDir) -> None:
    state = site.stack.client.wait_for_run(dag_id, run_id, timeout_s=180)
    assert state == "success", site.stack.client.log(dag_id, run_id, "train")
    assert job.state().attempt == 1, "nobody began the job again"
    assert not job.earlier_failures()
    assert epochs_reported(job) == list(range(1, EPOCHS + 1)), "each epoch once, in order"
    result = site.stack.client.xcom(dag_id, run_id, "train")
    done = job.result()
    assert done is not None
    assert result == done["result"], "the task's result is the job's"
    assert not job_processes(job)


def start_deferred(site: Site, *, seed: int) -> tuple[str, JobDir]:
    """A waiting training whose task waits in the triggerer."""
    run_id, job = site.start_waiting_training("deferred", seed=seed)
    site.stack.client.wait_for_task("deferred", run_id, "train", "deferred", timeout_s=60)
    return run_id, job


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
    run_id, job = start_deferred(prepared, seed=3)
    prepared.stack.kill("scheduler")
    prepared.stack.restart("scheduler")
    finish(prepared, "deferred", run_id, job)


def test_fault_04_triggerer_killed_and_restarted_resumes_the_task_within_a_minute(prepared: Site) -> None:
    """The training ends while there is no triggerer, so that what is waited for is the triggerer's work alone."""
    run_id, job = start_deferred(prepared, seed=4)
    prepared.stack.kill("triggerer")
    prepared.let_go()
    wait_until(lambda: job.state().phase.final, timeout_s=90, what=lambda: f"the training does not end: {job.state()}")
    client = prepared.stack.client
    assert client.task_instance("deferred", run_id, "train")["state"] == "deferred"
    restarted = time.monotonic()
    prepared.stack.restart("triggerer")
    wait_until(
        lambda: client.task_instance("deferred", run_id, "train")["state"] != "deferred",
        timeout_s=restarted + _RESUMES_S - time.monotonic(),
        what=lambda: f"still deferred {_RESUMES_S:.0f} s after the triggerer's restart",
    )
    check_end(prepared, "deferred", run_id, job)
    assert job.cancel_requested() is None


def test_fault_05_the_api_server_is_down_while_a_training_goes_on_and_ends(prepared: Site) -> None:
    """Row 5's five minutes, shortened: what matters is that the training goes on, ends without it, and that its result is found."""
    run_id, job = start_deferred(prepared, seed=5)
    prepared.stack.kill("api-server")
    try:
        beat = job.beat()
        wait_until(lambda: job.beat() >= beat + 10, timeout_s=60, what=lambda: f"the runner does not beat: {job.state()}")
        assert job.state().phase is Phase.RUNNING
        assert job.cancel_requested() is None
        prepared.let_go()
        wait_until(lambda: job.state().phase.final, timeout_s=90, what=lambda: f"the training does not end: {job.state()}")
    finally:
        prepared.stack.restart("api-server")
    check_end(prepared, "deferred", run_id, job)


def test_fault_32_of_two_runs_for_one_model_at_once_one_trains_and_the_other_finds_it_done(prepared: Site) -> None:
    client = prepared.stack.client
    client.set_pool("gpu", 2)
    try:
        first_run, first = prepared.start_waiting_training("deferred", seed=32)
        second_run = client.trigger("deferred", {"epochs": EPOCHS, "seed": 32, "trainer": WAITING})
        second = prepared.job("deferred", second_run, "train")
        wait_until(
            lambda: any(record["phase"] == "wait" for record in second.read_metrics()[0]),
            timeout_s=90,
            what=lambda: f"the second training does not wait: {second.state()}",
        )
        finish(prepared, "deferred", first_run, first)
        assert client.wait_for_run("deferred", second_run, timeout_s=120) == "success"
    finally:
        client.set_pool("gpu", 1)
    results = [client.xcom("deferred", run_id, "train") for run_id in (first_run, second_run)]
    assert epochs_reported(second) == [], "the second run has trained too"
    assert [result["already_done"] for result in results] == [False, True]
    assert len({(result["model"], result["path"], result["dice"]) for result in results}) == 1


@pytest.mark.nightly
def test_fault_45_fifty_tasks_whose_service_is_down_come_back_spread_and_not_later_than_the_cap(site: Site) -> None:
    """The delays that Airflow really kept: from a try's end until the scheduler took the task up again."""
    client = site.stack.client
    client.wait_for_dag("service_down")
    run_id = client.trigger("service_down")
    assert client.wait_for_run("service_down", run_id, timeout_s=1500) == "failed"
    path = f"dags/service_down/dagRuns/{quote(run_id, safe='')}/taskInstances/ask"
    delays: dict[int, list[float]] = {1: [], 2: []}
    for index in range(50):
        tries = sorted(client.request("GET", f"{path}/{index}/tries")["task_instances"], key=lambda item: int(item["try_number"]))
        assert [item["try_number"] for item in tries] == [1, 2, 3]
        for before, after in itertools.pairwise(tries):
            gap = dt.datetime.fromisoformat(after["scheduled_when"]) - dt.datetime.fromisoformat(before["end_date"])
            delays[before["try_number"]].append(gap.total_seconds())
    base, cap = 20.0, 30.0  # of tests/e2e/dags/service_down.py
    for tries, found in delays.items():
        longest = min(base * 2 ** (tries - 1), cap)
        assert min(found) >= longest / 2 - 0.5, "nobody comes back at once"
        assert statistics.median(found) < longest + 5, "the cap holds, give or take the scheduler's loop"
        assert statistics.quantiles(found, n=10)[-1] - statistics.quantiles(found, n=10)[0] > longest / 5, "they come back spread"


def test_fault_62_airflow_itself_remembers_which_workspace_is_in_use(prepared: Site) -> None:
    """For a share that takes all of the workspace's roots along, the lease ledger included."""
    jobs = prepared.workspace.jobs
    known = prepared.stack.client.request("GET", f"variables/{variable_of(jobs)}")
    assert known["value"] == read_marker(jobs)["workspace"]  # type: ignore[index]


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
    # A deferral that Airflow writes at the same moment can overwrite the mark where the database locks no rows, as SQLite does not. The
    # task then resumes, finds its job cancelled by a user, and fails for good.
    assert prepared.stack.client.wait_for_run(dag_id, run_id, timeout_s=60) == "failed"
    assert prepared.stack.client.task_instance(dag_id, run_id, "train")["state"] == "failed"
    assert job.state().attempt == 1, "nobody began the job again"


def test_fault_14_a_training_over_its_time_limit_is_stopped_and_keeps_its_checkpoint(prepared: Site) -> None:
    run_id, job = prepared.start_training("limited", epochs=500, seed=14, until_epoch=1)
    wait_until(lambda: not job_processes(job), timeout_s=90, what=lambda: f"still running: {job_processes(job)}, {job.state()}")
    assert epochs_done(job) >= 1
    assert checkpoints(job, prepared)
    assert not Ledger(prepared.workspace.leases).holders()
    assert prepared.stack.client.wait_for_run("limited", run_id, timeout_s=60) == "failed"
