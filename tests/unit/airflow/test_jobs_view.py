"""The pages behind the links show a job's own text files and nothing else. That they ask for a login is shown with a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_nnunet.backends import FakeBackend
from nnunet_jobs.contract.jobdir import JobDir
from nnunet_jobs.contract.spec import JobSpec, make_job_id
from nnunet_jobs.contract.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


@pytest.fixture
def job(nnunet: Path) -> JobDir:
    params = {"dataset": 4, "configuration": "2d", "fold": 0}
    job = FakeBackend().submit(JobSpec(job_id=make_job_id("train", "t"), step="train", params=params, workspace=Workspace.below(nnunet)))
    (nnunet / "secret.txt").write_text("secret")
    (job.path / "link.txt").symlink_to(nnunet / "secret.txt")
    (job.path / "checkpoint.pth").write_bytes(b"x")
    return job


@pytest.fixture
def get(job: JobDir) -> Iterator[object]:
    from fastapi.testclient import TestClient

    from airflow_nnunet.jobs_view import create_app

    app = create_app()
    (guard,) = app.router.dependencies
    app.dependency_overrides[guard.dependency] = lambda: None  # who may come in is Airflow's decision, what they see is ours
    with TestClient(app) as client:
        yield client.get


def test_log_and_folder_of_a_job(get: object, job: JobDir) -> None:
    log = get(f"/jobs/{job.job_id}/log")  # type: ignore[operator]
    assert log.text == "fake attempt 1 of train\n"
    assert log.headers["content-type"].startswith("text/plain")
    assert log.headers["x-content-type-options"] == "nosniff"
    page = get(f"/jobs/{job.job_id}/").text  # type: ignore[operator]
    assert "spec.json" in page
    assert "checkpoint.pth" not in page
    assert "link.txt" not in page
    assert get(f"/jobs/{job.job_id}/files/result.json").json()["attempt"] == 1  # type: ignore[operator]


def test_the_end_of_a_long_log_says_what_is_missing(get: object, job: JobDir) -> None:
    job.log.write_text("a" * 100 + "end")
    assert get(f"/jobs/{job.job_id}/log", params={"tail": 3}).text == "... 100 bytes before\nend"  # type: ignore[operator]


def test_what_a_log_holds_is_never_markup(get: object, job: JobDir) -> None:
    job.set_phase(1, job.state().phase, "<script>alert(1)</script>")
    page = get(f"/jobs/{job.job_id}/")  # type: ignore[operator]
    assert "<script>" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/train-00000000000000000000/log",
        "/jobs/..%2f..%2fetc/log",
        "/jobs/%2e%2e/",
        "/jobs/{id}/files/link.txt",
        "/jobs/{id}/files/checkpoint.pth",
        "/jobs/{id}/files/..%2f..%2fsecret.txt",
        "/jobs/{id}/files/%2e%2e%2f%2e%2e%2fsecret.txt",
        "/jobs/.{id}/log",
        "/jobs/{id}%00/log",
        "/openapi.json",
        "/docs",
    ],
)
def test_nothing_outside_the_job_is_shown(get: object, job: JobDir, path: str) -> None:
    answer = get(path.replace("{id}", job.job_id))  # type: ignore[operator]
    assert answer.status_code == 404
    assert "secret" not in answer.text
