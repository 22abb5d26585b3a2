"""Tasks that wait in the worker (``deferrable=False``), and a user's act with nobody there to see it, under a real Airflow.

The jobs are real, with a step that waits for a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from airflow_nnunet.stack import Stack
from nnunet_jobs.contract.jobdir import JobDir, Phase
from support.jobs import TESTS, wait_for

pytestmark = pytest.mark.e2e

DAGS = """
import json, os
from airflow.sdk import DAG
from airflow_nnunet.operators import RegisterDatasetOperator

class Toy(RegisterDatasetOperator):
    def result_ready(self, context, result):
        pass

for name, deferrable in (("polled", False), ("deferred", True)):
    with DAG(name, schedule=None) as dag:
        Toy(task_id="toy", dataset_id=1, name="T", deferrable=deferrable, grace_s=20,
            source=json.dumps({"until": os.environ["TOY"] + "/" + name}))
    globals()[name] = dag
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("polled")
    (folder / "dags").mkdir()
    (folder / "dags" / "toys.py").write_text(DAGS)
    settings = {
        "nnunet.workspace": str(folder / "work"),
        "nnunet.poll_interval": "0.3",
        "nnunet.cpu_slots": "8",
        "nnunet.backend_options": json.dumps({"module": "support.jobs", "environment": {"PYTHONPATH": str(TESTS)}}),
    }
    environment = {"TOY": str(folder), "PYTHONPATH": str(TESTS)}
    with Stack(folder / "home", dags=folder / "dags", settings=settings, environment=environment) as running:
        for name in ("polled", "deferred"):
            running.client.wait_for_dag(name)
        yield running


def begin(stack: Stack, dag: str, state: str) -> tuple[str, JobDir]:
    """A run whose job computes."""
    run = stack.client.trigger(dag)
    stack.client.wait_for_task(dag, run, "toy", state, timeout_s=60)

    def recorded() -> JobDir | None:
        with contextlib.suppress(Exception):
            return JobDir(stack.client.xcom(dag, run, "toy", key="nnunet_job")["path"])
        return None

    job = wait_for(recorded, what="the job on record")
    wait_for(lambda: job.state().phase is Phase.RUNNING, what="the job running")
    return run, job


def let_end(stack: Stack, dag: str) -> Path:
    file = stack.home.parent / dag
    file.touch()
    return file


def test_fault_02_a_stopping_worker_detaches_and_the_task_attaches_again_without_spending_a_retry(stack: Stack) -> None:
    run, job = begin(stack, "polled", "running")
    name = stack.client.task_instance("polled", run, "toy")["id"]
    workers = [process for process in psutil.Process(stack.pid("scheduler")).children() if name in _title(process)]
    assert workers
    for process in workers:
        os.kill(process.pid, signal.SIGTERM)
    stack.client.wait_for_task("polled", run, "toy", "up_for_reschedule", timeout_s=30)
    assert job.cancel_requested() is None
    file = let_end(stack, "polled")
    assert stack.client.wait_for_run("polled", run, timeout_s=90) == "success"
    file.unlink()
    assert stack.client.xcom("polled", run, "toy")["attempt"] == 1
    assert stack.client.task_instance("polled", run, "toy")["try_number"] == 1


def test_fault_13_marking_a_polled_task_failed_cancels_its_job(stack: Stack) -> None:
    run, job = begin(stack, "polled", "running")
    stack.client.set_state("polled", run, "toy", "failed")
    failure = wait_for(job.failure, what="the cancelled job's end")
    assert failure.cancelled


def test_clearing_a_polled_task_cancels_its_job_and_starts_another(stack: Stack) -> None:
    run, job = begin(stack, "polled", "running")
    stack.client.clear("polled", run, "toy")
    assert wait_for(job.failure, timeout_s=60, what="the cancelled job's end").cancelled
    file = let_end(stack, "polled")
    assert stack.client.wait_for_run("polled", run, timeout_s=90) == "success"
    file.unlink()
    assert stack.client.xcom("polled", run, "toy", key="nnunet_job")["job_id"] != job.job_id


def test_marking_failed_while_the_triggerer_is_down_cancels_the_job(stack: Stack) -> None:
    run, job = begin(stack, "deferred", "deferred")
    stack.kill("triggerer")
    stack.client.set_state("deferred", run, "toy", "failed")
    assert wait_for(job.failure, what="the cancelled job's end").cancelled
    stack.restart("triggerer")


def test_the_jobs_pages_ask_for_a_login_and_are_linked_from_the_task(stack: Stack) -> None:
    run, job = begin(stack, "deferred", "deferred")
    links = stack.client.request("GET", f"dags/deferred/dagRuns/{quote(run, safe='')}/taskInstances/toy/links")["extra_links"]
    assert set(links) == {"Job log", "Job folder", "Dataset report"}
    assert all(job.job_id in link for link in links.values())
    asked = urllib.request.Request(stack.url + "/auth/token", json.dumps({"username": stack.username, "password": stack.password}).encode())
    asked.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(asked) as answer:
        token = json.load(answer)["access_token"]
    for name, link in links.items():
        there = 404 if name == "Dataset report" else 200  # this step writes none
        assert _status(stack.url + link) == 401
        assert _status(stack.url + link, Authorization=f"Bearer {token}") == there
        assert _status(stack.url + link, Cookie=f"_token={token}") == there
    file = let_end(stack, "deferred")
    assert stack.client.wait_for_run("deferred", run, timeout_s=60) == "success"
    file.unlink()


def _status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
