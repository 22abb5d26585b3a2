"""A user's mark is heard in the API server; what is on record is checked before a job is cancelled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_nnunet.backends import FakeBackend, FakeOutcome, read_status
from airflow_nnunet.jobs import listeners
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec, make_job_id
from nnunet_jobs.contract.storage.workspace import Workspace
from support.jobs import wait_for


def task(task_id: str = "mine", map_index: int = -1) -> Any:
    return SimpleNamespace(dag_id="dag", run_id="run", task_id=task_id, map_index=map_index)


@pytest.fixture
def job(workspace: Workspace) -> Any:
    labels = {"dag_id": "dag", "run_id": "run", "task_id": "mine", "map_index": "-1"}
    params = {"dataset": 4, "configuration": "2d", "fold": 0}
    spec = JobSpec(job_id=make_job_id("train", "t"), step="train", params=params, workspace=workspace, labels=labels)
    job = FakeBackend(script=lambda spec, attempt: FakeOutcome(forever=True)).submit(spec)
    yield job
    job.request_cancel("the test is over")
    wait_for(lambda: read_status(job).final)


def test_the_marked_tasks_job_is_cancelled(job: JobDir) -> None:
    listeners.cancel_job_at(str(job.path), task(), "marked failed")
    assert job.cancel_requested() == "marked failed"


@pytest.mark.parametrize("other", [task("other"), task(map_index=0)])
def test_another_tasks_job_is_left_alone_whatever_the_record_says(job: JobDir, other: Any) -> None:
    listeners.cancel_job_at(str(job.path), other, "marked failed")
    assert job.cancel_requested() is None


def test_a_record_that_leads_nowhere_does_not_stop_the_users_act(tmp_path: Any) -> None:
    listeners.cancel_job_at(str(tmp_path / "nothing"), task(), "marked failed")
    (tmp_path / "spec.json").write_text("[]")
    listeners.cancel_job_at(str(tmp_path), task(), "marked failed")
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


def test_a_workers_own_failure_is_no_users_act() -> None:
    listeners.on_task_instance_failed("running", object(), "error")  # would fail on this object if it looked for a job
    listeners.on_task_instance_success("running", object())
    listeners.on_task_instance_skipped("running", object())
