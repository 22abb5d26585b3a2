"""The pages behind the links show a job's own text files and nothing else. That they ask for a login is shown with a real API server."""

from __future__ import annotations

import os
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


def test_the_report_is_shown_with_pictures_and_without_any_power(get: object, job: JobDir) -> None:
    answer = get(f"/jobs/{job.job_id}/report")  # type: ignore[operator]
    assert answer.status_code == 404
    assert "when the check of the dataset ends" in answer.json()["detail"]
    assert 'href="report"' not in get(f"/jobs/{job.job_id}/").text  # type: ignore[operator]
    (job.path / "report.html").write_text("<!doctype html><h1>Liver ä</h1>")
    answer = get(f"/jobs/{job.job_id}/report")  # type: ignore[operator]
    assert answer.status_code == 200
    assert answer.text == "<!doctype html><h1>Liver ä</h1>"
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"].split("; ")
    assert policy == ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:", "sandbox"]
    assert 'href="report"' in get(f"/jobs/{job.job_id}/").text  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_report_that_is_no_plain_file_is_not_opened(get: object, job: JobDir, kind: str) -> None:
    report = job.path / "report.html"
    {"link": lambda: report.symlink_to(job.path.parents[1] / "secret.txt"), "pipe": lambda: os.mkfifo(report), "folder": report.mkdir}[
        kind
    ]()
    answer = get(f"/jobs/{job.job_id}/report")  # type: ignore[operator]
    assert answer.status_code == 404
    assert "secret" not in answer.text


@pytest.mark.parametrize("page", ["log", "", "report", "files/spec.json"])
def test_without_a_login_nothing_is_shown(job: JobDir, page: str) -> None:
    from fastapi.testclient import TestClient

    from airflow_nnunet.jobs_view import create_app

    (job.path / "report.html").write_text("secret")
    with TestClient(create_app()) as client:
        answer = client.get(f"/jobs/{job.job_id}/{page}")
    assert answer.status_code == 401
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/train-00000000000000000000/log",
        "/jobs/..%2f..%2fetc/log",
        "/jobs/%2e%2e/",
        "/jobs/{id}/files/link.txt",
        "/jobs/{id}/files/checkpoint.pth",
        "/jobs/{id}/files/report.html",
        "/jobs/{id}/report/",
        "/jobs/train-00000000000000000000/report",
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
