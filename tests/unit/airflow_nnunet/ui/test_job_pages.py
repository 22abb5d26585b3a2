"""The pages behind the links show a job's own text files and nothing else. That they ask for a login is shown with a real API server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import HTTPException

from airflow_nnunet.backends import FakeBackend
from airflow_nnunet.ui.job_pages import find_job
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec, make_job_id
from nnunet_jobs.contract.storage.workspace import Workspace
from support.auth import api_server, token
from support.users import BOB, as_user, open_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


Get = Callable[..., httpx.Response]


def submitted(workspace: Path, *, task: str = "t", **labels: str) -> JobDir:
    params = {"dataset": 4, "configuration": "2d", "fold": 0}
    spec = JobSpec(job_id=make_job_id("train", task), step="train", params=params, workspace=Workspace.below(workspace), labels=labels)
    return FakeBackend().submit(spec)


@pytest.fixture
def job(nnunet: Path) -> JobDir:
    job = submitted(nnunet, dag_id="dag")
    (nnunet / "secret.txt").write_text("secret")
    (job.path / "link.txt").symlink_to(nnunet / "secret.txt")
    (job.path / "checkpoint.pth").write_bytes(b"x")
    return job


@pytest.fixture(scope="module")
def server(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    database = tmp_path_factory.mktemp("database") / "airflow.db"
    shutil.copy(migrated / "airflow.db", database)
    with api_server(database):
        yield


@pytest.fixture
def visit(server: None) -> Iterator[Callable[[str | None], Get]]:
    """The pages as a user sees them, as a program or a browser asks; None is nobody."""
    from fastapi.testclient import TestClient

    from airflow_nnunet.ui.job_pages import create_app

    with TestClient(create_app()) as client:

        def of(user: str | None) -> Get:
            headers = {"Authorization": f"Bearer {token(user)}"} if user else {}

            def get(path: str, *, accept: str = "*/*", **more: Any) -> httpx.Response:
                return client.get(path, headers={"Accept": accept, **headers}, **more)

            return get

        yield of


@pytest.fixture
def get(job: JobDir, visit: Callable[[str | None], Get]) -> Get:
    return visit("alice")


def test_log_and_folder_of_a_job(get: Get, job: JobDir) -> None:
    log = get(f"/jobs/{job.job_id}/log")
    assert log.text == "fake attempt 1 of train\n"
    assert log.headers["content-type"].startswith("text/plain")
    assert log.headers["x-content-type-options"] == "nosniff"
    page = get(f"/jobs/{job.job_id}/").text
    assert "spec.json" in page
    assert "checkpoint.pth" not in page
    assert "link.txt" not in page
    assert get(f"/jobs/{job.job_id}/files/result.json").json()["attempt"] == 1


def test_the_end_of_a_long_log_says_what_is_missing(get: Get, job: JobDir) -> None:
    job.log.write_text("a" * 100 + "end")
    assert get(f"/jobs/{job.job_id}/log", params={"tail": 3}).text == "... 100 bytes before\nend"


def test_what_a_log_holds_is_never_markup(get: Get, job: JobDir) -> None:
    job.set_phase(1, job.state().phase, "<script>alert(1)</script>")
    page = get(f"/jobs/{job.job_id}/")
    assert "<script>" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_report_is_shown_with_pictures_and_without_any_power(get: Get, job: JobDir) -> None:
    answer = get(f"/jobs/{job.job_id}/report")
    assert answer.status_code == 404
    assert "when the check of the dataset ends" in answer.json()["detail"]
    assert 'href="report"' not in get(f"/jobs/{job.job_id}/").text
    (job.path / "report.html").write_text("<!doctype html><h1>Liver ä</h1>")
    answer = get(f"/jobs/{job.job_id}/report")
    assert answer.status_code == 200
    assert answer.text == "<!doctype html><h1>Liver ä</h1>"
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"].split("; ")
    assert policy == ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:", "sandbox"]
    assert 'href="report"' in get(f"/jobs/{job.job_id}/").text


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_report_that_is_no_plain_file_is_not_opened(get: Get, job: JobDir, kind: str) -> None:
    report = job.path / "report.html"
    {"link": lambda: report.symlink_to(job.path.parents[1] / "secret.txt"), "pipe": lambda: os.mkfifo(report), "folder": report.mkdir}[
        kind
    ]()
    answer = get(f"/jobs/{job.job_id}/report")
    assert answer.status_code == 404
    assert "secret" not in answer.text


PAGES = ["log", "", "report", "files/spec.json"]
UNKNOWN = "train-00000000000000000000"


@pytest.mark.parametrize("page", PAGES)
def test_fault_75_without_a_login_a_program_gets_401_and_a_browser_the_login_page(
    job: JobDir, visit: Callable[[str | None], Get], page: str
) -> None:
    (job.path / "report.html").write_text("secret")
    nobody = visit(None)
    answer = nobody(f"/jobs/{job.job_id}/{page}")
    assert answer.status_code == 401
    assert "secret" not in answer.text
    answer = nobody(f"/jobs/{job.job_id}/{page}", accept="text/html,*/*", follow_redirects=False)
    assert answer.status_code == 307
    place = urlsplit(answer.headers["location"])
    assert (place.path, parse_qs(place.query)) == ("/api/v2/auth/login", {"next": [f"http://testserver/jobs/{job.job_id}/{page}"]})


@pytest.mark.parametrize("page", PAGES)
def test_a_job_is_for_those_who_may_read_its_dag(job: JobDir, visit: Callable[[str | None], Get], page: str) -> None:
    (job.path / "report.html").write_text("report")
    assert visit("alice")(f"/jobs/{job.job_id}/{page}").status_code == 200
    refused = visit("carol")(f"/jobs/{job.job_id}/{page}")
    unknown = visit("carol")(f"/jobs/{UNKNOWN}/{page}")
    assert (refused.status_code, refused.text) == (404, unknown.text), "what may not be read is as unknown as any"


@pytest.mark.parametrize("page", PAGES)
def test_fault_54_another_teams_job_is_unknown(
    nnunet: Path, visit: Callable[[str | None], Get], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    teams = tmp_path / "teams"
    teams.mkdir()
    monkeypatch.setenv("AIRFLOW__NNUNET__TEAMS", str(teams))
    for team, members in (("mri", "[mary]"), ("ct", "[carl]"), ("open", "[]")):
        text = f"pool: {{slots: 1}}\nnnunet: {{workspace: {tmp_path / team}}}\npredictions: {{members: {members}}}\n"
        (teams / f"{team}.yaml").write_text(text)
    labelled = submitted(nnunet, task="labelled", dag_id="pull", team="mri")
    jobs = {
        "in the team's folder": submitted(tmp_path / "mri", task="a", dag_id="pull", team="mri"),
        "in the team's folder without a label": submitted(tmp_path / "mri", task="b", dag_id="pull"),
        "by its label alone": labelled,
    }
    for what, job in jobs.items():
        (job.path / "report.html").write_text("report")
        assert visit("mary")(f"/jobs/{job.job_id}/{page}").status_code == 200, what
        for stranger in ("carl", "anna"):
            refused = visit(stranger)(f"/jobs/{job.job_id}/{page}")
            assert (refused.status_code, refused.text) == (404, visit(stranger)(f"/jobs/{UNKNOWN}/{page}").text), (what, stranger)
    free = submitted(tmp_path / "open", task="c", dag_id="pull", team="open")
    (free.path / "report.html").write_text("report")
    assert visit("anna")(f"/jobs/{free.job_id}/{page}").status_code == 200, "a team without members leaves it to the DAG"
    (teams / "mri.yaml").write_text("pool: {slots: many}\n")
    assert visit("mary")(f"/jobs/{labelled.job_id}/{page}").status_code == 404, "nobody can say who is a member"


def test_a_job_of_no_dag_is_nobodys(nnunet: Path, visit: Callable[[str | None], Get]) -> None:
    job = submitted(nnunet)
    assert visit("alice")(f"/jobs/{job.job_id}/log").status_code == 404
    (job.path / "spec.json").write_text("{")
    assert visit("alice")(f"/jobs/{job.job_id}/log").status_code == 404


def test_a_jobs_folder_that_moved_is_said(nnunet: Path, job: JobDir, get: Get) -> None:
    assert "missing" not in get(f"/jobs/{UNKNOWN}/log").text
    (nnunet / "jobs").rename(nnunet / "elsewhere")
    answer = get(f"/jobs/{job.job_id}/log")
    assert answer.status_code == 404
    assert "1 of these folders cannot be read on this server" in answer.json()["detail"]
    (nnunet / "jobs").mkdir()  # the mount point of a share that is not mounted
    assert "1 of these folders cannot be read on this server" in get(f"/jobs/{job.job_id}/log").json()["detail"]


def test_a_jobs_folder_that_is_closed_to_the_server_keeps_no_other_job_from_view(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_folder() as folder:
        teams = folder / "teams"
        teams.mkdir()
        (teams / "mri.yaml").write_text(f"pool: {{slots: 1}}\nnnunet: {{workspace: {folder / 'open'}}}\n")
        monkeypatch.setenv("AIRFLOW__NNUNET__TEAMS", str(teams))
        monkeypatch.setenv("AIRFLOW__NNUNET__WORKSPACE", str(folder / "closed"))
        closed, readable = submitted(folder / "closed"), submitted(folder / "open", task="u")
        for path in (folder / "open", *(folder / "open").rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (folder / "closed").chmod(0o700)

        def look() -> list[str]:
            with pytest.raises(HTTPException) as unknown:
                find_job(closed.job_id)
            return [str(find_job(readable.job_id)[0]), str(unknown.value.detail)]

        found, detail = as_user(BOB, look)["result"]
    assert found == str(readable.path)
    assert "1 of these folders cannot be read on this server" in detail


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
def test_nothing_outside_the_job_is_shown(get: Get, job: JobDir, path: str) -> None:
    answer = get(path.replace("{id}", job.job_id))
    assert answer.status_code == 404
    assert "secret" not in answer.text
