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
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from devtools.stack import Stack
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.state import Phase
from support.jobs import TESTS, wait_for
from support.stack import Site

pytestmark = pytest.mark.e2e

POLLED, DEFERRED = "toy_polled", "toy_deferred"


@pytest.fixture(scope="module")
def stack(site: Site) -> Stack:
    """The site's Airflow with a connection that puts the test's step instead of the five real ones."""
    options = {
        "poll_interval": 0.3,
        "cpu_slots": 8,
        "backend_options": {"module": "support.jobs", "environment": {"PYTHONPATH": str(TESTS)}},
    }
    body = {"connection_id": "toys", "conn_type": "nnunet", "extra": json.dumps(options)}
    site.stack.client.request("POST", "connections", json=body)
    for name in (POLLED, DEFERRED):
        site.stack.client.wait_for_dag(name)
    return site.stack


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
    file = stack.home.parent / f"{dag}.end"
    file.touch()
    return file


def test_fault_02_a_stopping_worker_detaches_and_the_task_attaches_again_without_spending_a_retry(stack: Stack) -> None:
    run, job = begin(stack, POLLED, "running")
    name = stack.client.task_instance(POLLED, run, "toy")["id"]
    workers = [process for process in psutil.Process(stack.pid("scheduler")).children() if name in _title(process)]
    assert workers
    for process in workers:
        os.kill(process.pid, signal.SIGTERM)
    stack.client.wait_for_task(POLLED, run, "toy", "up_for_reschedule", timeout_s=30)
    assert job.cancel_requested() is None
    file = let_end(stack, POLLED)
    assert stack.client.wait_for_run(POLLED, run, timeout_s=90) == "success"
    file.unlink()
    assert stack.client.xcom(POLLED, run, "toy")["attempt"] == 1
    assert stack.client.task_instance(POLLED, run, "toy")["try_number"] == 1


def test_fault_13_marking_a_polled_task_failed_cancels_its_job(stack: Stack) -> None:
    run, job = begin(stack, POLLED, "running")
    stack.client.set_state(POLLED, run, "toy", "failed")
    failure = wait_for(job.failure, what="the cancelled job's end")
    assert failure.cancelled


def test_clearing_a_polled_task_cancels_its_job_and_starts_another(stack: Stack) -> None:
    run, job = begin(stack, POLLED, "running")
    stack.client.clear(POLLED, run, "toy")
    assert wait_for(job.failure, timeout_s=60, what="the cancelled job's end").cancelled
    file = let_end(stack, POLLED)
    assert stack.client.wait_for_run(POLLED, run, timeout_s=90) == "success"
    file.unlink()
    assert stack.client.xcom(POLLED, run, "toy", key="nnunet_job")["job_id"] != job.job_id


def test_marking_failed_while_the_triggerer_is_down_cancels_the_job(stack: Stack) -> None:
    run, job = begin(stack, DEFERRED, "deferred")
    stack.kill("triggerer")
    stack.client.set_state(DEFERRED, run, "toy", "failed")
    assert wait_for(job.failure, what="the cancelled job's end").cancelled
    stack.restart("triggerer")


def test_the_jobs_pages_ask_for_a_login_and_are_linked_from_the_task(stack: Stack) -> None:
    run, job = begin(stack, DEFERRED, "deferred")
    links = stack.client.request("GET", f"dags/{DEFERRED}/dagRuns/{quote(run, safe='')}/taskInstances/toy/links")["extra_links"]
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
    file = let_end(stack, DEFERRED)
    assert stack.client.wait_for_run(DEFERRED, run, timeout_s=60) == "success"
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
