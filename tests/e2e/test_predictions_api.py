"""The prediction API of a running Airflow: taken, queued, predicted by a server or a job, fetched, refused, cancelled; and its faults."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from airflow_nnunet.rest_client import AirflowClient, wait_until
from airflow_nnunet.serving.spaces import Space
from airflow_nnunet.serving.store import Draft, new_id
from airflow_nnunet.stack_config import password_file
from nnunet_jobs.contract.workspace import Workspace
from support.airflow import environment, run
from support.serving import DATASET, ServerProcess, make_image, make_model
from support.stack import COMMON_QUOTA, QUEUE_LIMIT, Site, job_processes, kill

pytestmark = pytest.mark.e2e

API = "nnunet-api/predictions"
DAG, LATE_DAG = "nnunet_predictions", "nnunet_predictions_late"
UNKNOWN = "p-" + "0" * 32


@pytest.fixture(scope="module")
def served(site: Site) -> Site:
    """The site with a promoted model of random weights, its own and the team's."""
    for workspace in (site.workspace, Workspace.below(site.root / "late")):
        workspace.raw_dataset(DATASET).mkdir(parents=True)
        make_model(workspace, "m1", seed=1)
    site.stack.client.set_pool("late", 4)
    for dag_id in (DAG, LATE_DAG):
        site.stack.client.wait_for_dag(dag_id)
    return site


@pytest.fixture
def alice(served: Site) -> Iterator[AirflowClient]:
    client = served.user("alice")
    yield client
    client.close()


@pytest.fixture
def bob(served: Site) -> Iterator[AirflowClient]:
    client = served.user("bob")
    yield client
    client.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("image") / "MEIER^ANNA_0000.nii.gz")


def post(client: AirflowClient, image: Path, **headers: str) -> httpx.Response:
    files = [("images", (image.name, image.read_bytes(), "application/gzip"))]
    return client.send("POST", API, data={"dataset": DATASET}, files=files, headers=headers)


def accepted(answer: httpx.Response) -> str:
    assert answer.status_code == 202, answer.text
    found: str = answer.json()["id"]
    assert answer.headers["location"] == f"/{API}/{found}"
    return found


def finished(client: AirflowClient, prediction: str, *, timeout_s: float = 120) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def over() -> bool:
        nonlocal seen
        seen = client.send("GET", f"{API}/{prediction}").json()
        return seen["status"] not in ("queued", "running")

    wait_until(over, timeout_s=timeout_s, what=lambda: f"not finished: {seen}")
    return seen


def requests_of(site: Site) -> list[str]:
    folder = Path(site.workspace.output_roots[0]) / "requests"
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_without_a_server_the_request_loads_the_model_itself(served: Site, alice: AirflowClient, image: Path) -> None:
    prediction = accepted(post(alice, image))
    early = alice.send("GET", f"{API}/{prediction}/result")
    assert early.status_code == 409
    assert early.headers["content-type"] == "application/problem+json"
    found = finished(alice, prediction)
    assert found["status"] == "succeeded", found
    assert set(found["volumes_ml"]) == {"head", "tail"}
    result = alice.send("GET", f"{API}/{prediction}/result")
    assert result.headers["content-type"] == "application/gzip"
    assert gzip.decompress(result.content)[344:348] == b"n+1\0"
    record = alice.send("GET", f"{API}/{prediction}/result", headers={"Accept": "application/json"}).json()
    assert record["model"] == "m1"
    assert served.job(DAG, prediction, "predict").result() is not None, "a job of its own has done it"


def test_with_a_server_nothing_is_loaded_and_the_result_is_the_same(
    served: Site, alice: AirflowClient, image: Path, tmp_path: Path
) -> None:
    alone = finished(alice, accepted(post(alice, image)))
    with ServerProcess(served.workspace, tmp_path / "server.log", temporary=tmp_path / "tmp", uds=served.server_socket) as server:
        prediction = accepted(post(alice, image))
        found = finished(alice, prediction)
        assert found["status"] == "succeeded", found
        assert server.metric('nnunet_requests_total{status="200"}') == 1
    assert found["volumes_ml"] == alone["volumes_ml"]
    contents = [alice.send("GET", f"{API}/{item['id']}/result").content for item in (alone, found)]
    assert contents[0] == contents[1]
    states = served.stack.client.task_instances(DAG, prediction)
    assert [item["state"] for item in states] == ["success"]


def cleanup(site: Site) -> None:
    client = site.stack.client
    client.wait_for_dag("nnunet_prediction_cleanup")
    run_id = client.trigger("nnunet_prediction_cleanup")
    assert client.wait_for_run("nnunet_prediction_cleanup", run_id, timeout_s=60) == "success", client.log(
        "nnunet_prediction_cleanup", run_id, "remove_old"
    )


def test_retention_removes_what_is_old_and_what_no_run_knows(served: Site, alice: AirflowClient, image: Path) -> None:
    old, fresh = accepted(post(alice, image)), accepted(post(alice, image))
    assert finished(alice, old)["status"] == finished(alice, fresh)["status"] == "succeeded"
    root = Path(served.workspace.output_roots[0]) / "requests"
    orphan = root / UNKNOWN
    shutil.copytree(root / fresh, orphan)
    half = root / ".partial-0123456789abcdef"
    half.mkdir()
    with paused(served, DAG):
        waiting = accepted(post(alice, image))
        for folder, days in ((root / old, 31), (root / waiting, 31), (orphan, 2), (half, 2), (root / fresh, 2)):
            os.utime(folder, (time.time() - days * 86400,) * 2)
        cleanup(served)
        left = requests_of(served)
        assert waiting in left, "it is still in the queue"
    assert fresh in left
    assert not {old, orphan.name, half.name} & set(left)
    gone = alice.send("GET", f"{API}/{old}/result")
    assert (gone.status_code, "30 days" in gone.json()["detail"]) == (410, True)
    assert alice.send("GET", f"{API}/{old}").json()["status"] == "succeeded"
    assert alice.send("GET", f"{API}/{fresh}/result").status_code == 200


def test_an_upload_whose_server_died_before_there_was_a_run_is_taken_again(served: Site, alice: AirflowClient, image: Path) -> None:
    space = Space(team=None, workspace=served.workspace, quota=1, limit=1, keep_days=1, upload_mib=1)
    prediction = new_id(space, "alice", "visit 2")
    with Draft(space, prediction) as draft:
        shutil.copyfile(image, draft.image(0, ".nii.gz"))
        draft.complete(dataset=DATASET, model=None)
        draft.publish()
    assert alice.send("GET", f"{API}/{prediction}").status_code == 404
    assert accepted(post(alice, image, **{"Idempotency-Key": "visit 2"})) == prediction
    assert finished(alice, prediction)["status"] == "succeeded"


def predict(site: Site, *arguments: str | Path, user: str = "alice", url: str | None = None) -> subprocess.CompletedProcess[str]:
    """``airflow nnunet predict`` as a user."""
    password = json.loads(password_file(site.stack.home).read_text())[user]
    env = {**environment(site.root / "cli-home"), "NNUNET_API_USERNAME": user, "NNUNET_API_PASSWORD": password}
    return run(["-m", "airflow_nnunet", "predict", *arguments, "--dataset", DATASET, "--url", url or site.stack.url], env)


def test_the_command_posts_waits_and_saves(served: Site, image: Path, tmp_path: Path) -> None:
    saved = tmp_path / "segmentation.nii.gz"
    done = predict(served, image, "--output", saved)
    assert done.returncode == 0, done.stderr
    _, *volumes = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in volumes] == ["head", "tail"]
    assert gzip.decompress(saved.read_bytes())[344:348] == b"n+1\0"
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(gzip.compress(b"nothing" * 100))
    failed = predict(served, broken, "--wait", "--json")
    assert failed.returncode == 1
    assert failed.stderr.startswith("failed: ")
    assert json.loads(failed.stdout)["status"] == "failed"
    refused = predict(served, image, image)
    assert (refused.returncode, "the model needs 1" in refused.stderr) == (2, True), refused.stderr
    away = predict(served, image, url="http://127.0.0.1:9")
    assert (away.returncode, "no answer" in away.stderr) == (3, True)


def test_fault_47_the_api_server_is_killed_right_after_its_answer(served: Site, alice: AirflowClient, image: Path) -> None:
    prediction = accepted(post(alice, image))
    served.stack.kill("api-server")
    assert prediction in requests_of(served), "the images are on the disk"
    served.stack.restart("api-server")
    assert finished(alice, prediction)["status"] == "succeeded"


def test_cancel_stops_the_job_and_says_so(served: Site, alice: AirflowClient, image: Path) -> None:
    prediction = accepted(post(alice, image))
    job = served.job(DAG, prediction, "predict")
    assert alice.send("DELETE", f"{API}/{prediction}").status_code == 202
    wait_until(lambda: job.state().phase.final, timeout_s=60, what=lambda: f"still {job.state()}")
    assert job.cancel_requested() is not None
    assert not job_processes(job)
    assert finished(alice, prediction)["status"] == "cancelled"
    assert alice.send("DELETE", f"{API}/{prediction}").status_code == 204
    refused = alice.send("GET", f"{API}/{prediction}/result")
    assert refused.status_code == 409
    assert "cancelled" in refused.json()["detail"]


def test_a_broken_image_fails_with_its_reason_by_a_server_and_by_a_job(
    served: Site, alice: AirflowClient, image: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "MEIER^ANNA_0000.nii.gz"
    broken.write_bytes(gzip.compress(gzip.decompress(image.read_bytes())[:2000]))
    alone = finished(alice, accepted(post(alice, broken)))
    with ServerProcess(served.workspace, tmp_path / "server.log", temporary=tmp_path / "tmp", uds=served.server_socket):
        by_server = finished(alice, accepted(post(alice, broken)))
    for found in (alone, by_server):
        assert found["status"] == "failed"
        assert "0000.nii.gz" in found["reason"], found
        assert "MEIER" not in found["reason"]
        tasks = served.stack.client.task_instances(DAG, found["id"])
        assert [item["try_number"] for item in tasks] == [1], "the same image fails the same way: no retry"


def asking(site: Site, prediction: str) -> None:
    """Wait until the request's task waits for the server."""
    wait_until(
        lambda: "asking 1 predictor server" in site.stack.client.log(DAG, prediction, "predict"),
        timeout_s=60,
        what=lambda: f"not asked: {site.stack.client.states(DAG, prediction)}",
    )


@pytest.fixture
def stopped(served: Site, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that takes a connection, and does nothing until it is told to go on."""
    with ServerProcess(served.workspace, tmp_path / "server.log", temporary=tmp_path / "tmp", uds=served.server_socket) as server:
        server.process.send_signal(signal.SIGSTOP)
        try:
            yield server
        finally:
            server.process.send_signal(signal.SIGCONT)


def test_cancel_while_a_server_works_ends_the_task_and_begins_no_job(
    served: Site, alice: AirflowClient, image: Path, stopped: ServerProcess
) -> None:
    prediction = accepted(post(alice, image))
    served.stack.client.wait_for_task(DAG, prediction, "predict", "running", timeout_s=60)
    asking(served, prediction)
    _, task = served.task_processes()
    assert alice.send("DELETE", f"{API}/{prediction}").status_code == 202
    wait_until(lambda: not Path(f"/proc/{task}").exists(), timeout_s=60, what=lambda: f"{task} still runs")
    assert finished(alice, prediction)["status"] == "cancelled"
    stopped.process.send_signal(signal.SIGCONT)
    wait_until(lambda: stopped.metric("nnunet_requests_inside") == 0, timeout_s=30, what=lambda: "the server works for nobody")
    requests = [spec for spec in Path(served.workspace.jobs).glob("*/spec.json") if prediction in spec.read_text()]
    assert not requests


def test_a_worker_killed_while_a_server_works_costs_a_retry_and_no_second_prediction(
    served: Site, alice: AirflowClient, image: Path, stopped: ServerProcess
) -> None:
    prediction = accepted(post(alice, image))
    served.stack.client.wait_for_task(DAG, prediction, "predict", "running", timeout_s=60)
    asking(served, prediction)
    kill(*served.task_processes())
    stopped.process.send_signal(signal.SIGCONT)
    assert finished(alice, prediction)["status"] == "succeeded"
    assert stopped.metric('nnunet_requests_total{status="200"}') == 1
    (task,) = served.stack.client.task_instances(DAG, prediction)
    assert task["try_number"] == 2


@contextmanager
def paused(site: Site, *dag_ids: str) -> Iterator[None]:
    """What is posted meanwhile stays in the queue, and is cancelled afterwards."""
    for dag_id in dag_ids:
        site.stack.client.request("PATCH", f"dags/{dag_id}", json={"is_paused": True})
    try:
        yield
    finally:
        for dag_id in dag_ids:
            runs = site.stack.client.request("GET", f"dags/{dag_id}/dagRuns", params={"state": "queued", "limit": 100})["dag_runs"]
            for run in runs:
                site.stack.client.request("PATCH", f"dags/{dag_id}/dagRuns/{run['dag_run_id']}", json={"state": "failed"})
            site.stack.client.request("PATCH", f"dags/{dag_id}", json={"is_paused": False})


def runs_of(site: Site, dag_id: str) -> int:
    return int(site.stack.client.request("GET", f"dags/{dag_id}/dagRuns", params={"limit": 1})["total_entries"])


def test_fault_48_fifty_posts_with_one_key_are_one_prediction(
    served: Site, alice: AirflowClient, bob: AirflowClient, image: Path, tmp_path: Path
) -> None:
    with paused(served, DAG, LATE_DAG):
        before, folders = runs_of(served, DAG), requests_of(served)
        alice.send("GET", API)  # the login happens once and not in fifty threads
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda _: post(alice, image, **{"Idempotency-Key": "visit 1"}), range(50)))
        assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers if answer.status_code != 202]
        (prediction,) = {accepted(answer) for answer in answers}
        assert runs_of(served, DAG) == before + 1
        assert requests_of(served) == sorted([*folders, prediction])

        other = make_image(tmp_path / "other.nii.gz", seed=3)
        refused = post(alice, other, **{"Idempotency-Key": "visit 1"})
        assert refused.status_code == 422
        assert "Idempotency-Key" in refused.json()["detail"]
        assert requests_of(served) == sorted([*folders, prediction])
        assert accepted(post(bob, image, **{"Idempotency-Key": "visit 1"})) != prediction, "another user's key is another key"


def test_fault_49_quota_and_full_queue_are_refused_with_a_time_to_come_back(
    served: Site, alice: AirflowClient, bob: AirflowClient, image: Path
) -> None:
    with paused(served, DAG, LATE_DAG):
        for _ in range(COMMON_QUOTA):
            accepted(post(alice, image))
        folders = requests_of(served)
        refused = post(alice, image)
        assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (429, True)
        for _ in range(QUEUE_LIMIT - COMMON_QUOTA):
            accepted(post(bob, image))
        full = post(bob, image)
        assert (full.status_code, int(full.headers["retry-after"]) > 0) == (503, True)
        assert full.json()["detail"] == "the queue is full"
        assert requests_of(served) == folders, "what is refused leaves no files"
    accepted(post(alice, image))


def test_fault_54_another_teams_prediction_is_unknown(served: Site, alice: AirflowClient, bob: AirflowClient, image: Path) -> None:
    with paused(served, DAG, LATE_DAG):
        of_alice, of_bob = accepted(post(alice, image)), accepted(post(bob, image))
        for client, foreign, own in ((alice, of_bob, of_alice), (bob, of_alice, of_bob)):
            for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
                answers = [client.send(method, f"{API}/{prediction}{path}") for prediction in (foreign, UNKNOWN)]
                assert [answer.status_code for answer in answers] == [404, 404]
                assert answers[0].text == answers[1].text
            listed = [item["id"] for item in client.send("GET", API).json()["predictions"]]
            assert own in listed
            assert foreign not in listed
            page = client.send("GET", API, params={"limit": 1, "offset": 0}).json()
            assert ([item["id"] for item in page["predictions"]], page["total"]) == (listed[:1], len(listed))
        assert alice.send("GET", f"{API}/{of_alice}").json()["status"] == "queued", "nobody else has cancelled it"


def test_without_a_login_or_the_right_to_trigger_nothing_is_taken(served: Site, image: Path) -> None:
    with httpx.Client(base_url=served.stack.url, trust_env=False) as nobody:
        for method, path in (("POST", ""), ("GET", ""), ("GET", f"/{UNKNOWN}"), ("GET", f"/{UNKNOWN}/result"), ("DELETE", f"/{UNKNOWN}")):
            answer = nobody.request(method, f"/{API}{path}")
            assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json"), (method, path)
    carol = served.user("carol")  # a viewer
    folders = requests_of(served)
    assert post(carol, image).status_code == 403
    assert carol.send("GET", API).status_code == 200
    assert carol.send("DELETE", f"{API}/{UNKNOWN}").status_code == 403
    assert requests_of(served) == folders
    carol.close()


def test_fault_50_an_aborted_upload_leaves_no_files(served: Site, alice: AirflowClient, image: Path) -> None:
    alice.send("GET", API)
    before = requests_of(served)
    url = httpx.URL(served.stack.url)
    head = (
        f"POST /{API} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice._token}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        "Content-Length: 4000000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="images"; filename="a.nii.gz"\r\n\r\n'
    )
    for wait_for_server in (True, False):
        with socket.create_connection((url.host, url.port)) as connection:
            connection.sendall(head.encode() + b"x" * 2_000_000)
            if wait_for_server:
                wait_until(lambda: requests_of(served) != before, timeout_s=30, what=lambda: "the upload never began")
    wait_until(lambda: requests_of(served) == before, timeout_s=30, what=lambda: f"left over: {set(requests_of(served)) - set(before)}")
    too_large = alice.send("POST", API, data={"dataset": DATASET}, files={"images": ("a.nii.gz", os.urandom(9 << 20))})
    assert too_large.status_code == 413
    assert requests_of(served) == before


def test_a_path_below_an_input_root_is_copied_under_our_own_name(served: Site, alice: AirflowClient, image: Path) -> None:
    folder = Path(served.workspace.input_roots[0]) / "visit"
    folder.mkdir()
    shutil.copyfile(image, folder / image.name)
    with paused(served, DAG):
        found = [accepted(alice.send("POST", API, json={"dataset": "7", "cases": cases})) for cases in ("visit", f"visit/{image.name}")]
        for prediction in found:
            images = Path(served.workspace.output_roots[0]) / "requests" / prediction / "images"
            assert [path.name for path in images.iterdir()] == [f"{prediction}_0000.nii.gz"]
            assert next(images.iterdir()).read_bytes() == image.read_bytes()


@pytest.mark.parametrize(
    "cases",
    [
        "../work",
        "/etc/passwd",
        "visit/../../work/jobs",
        "$(id)",
        ";id",
        "a\nb",
        "a\0b",
        "escape/passwd",
        "$HOME",
        "",
        "." * 999,
        "x/" * 600,
    ],
)
def test_fault_52_and_53_paths_that_leave_the_input_roots_are_refused(served: Site, alice: AirflowClient, cases: str) -> None:
    escape = Path(served.workspace.input_roots[0]) / "escape"
    if not escape.is_symlink():
        escape.symlink_to("/etc")
    before, runs = requests_of(served), runs_of(served, DAG)
    answer = alice.send("POST", API, json={"dataset": DATASET, "cases": cases})
    assert answer.status_code == 422, answer.text
    assert "/work" not in answer.text
    assert (requests_of(served), runs_of(served, DAG)) == (before, runs)


def test_fault_53_and_55_names_that_a_client_gives_are_seen_nowhere(served: Site, alice: AirflowClient, image: Path) -> None:
    canary = "KANARI^VOGEL"
    names = (f"{canary};$(touch x).nii.gz", f"../../{canary}.nii.gz", f"{canary}\n.nii.gz", f"/etc/{canary}")
    found = []
    for name in names:
        answer = alice.send("POST", API, data={"dataset": DATASET}, files={"images": (name, image.read_bytes())})
        found.append(accepted(answer))
    assert {finished(alice, prediction)["status"] for prediction in found} == {"succeeded"}
    result = alice.send("GET", f"{API}/{found[0]}/result")
    assert canary not in str(result.headers)
    for folder in (served.root / "work", served.stack.home):  # paths, logs of tasks, jobs and components, SQLite's database
        for path in folder.rglob("*"):
            assert canary not in str(path)
            assert not path.is_file() or canary.encode() not in path.read_bytes(), path
    for fields in ({"dataset": "Dataset007_Cascade;id"}, {"dataset": DATASET, "model": "../m1"}, {"dataset": DATASET, "model": "m1\n"}):
        assert alice.send("POST", API, data=fields, files={"images": ("a.nii.gz", image.read_bytes())}).status_code == 422


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fault_56_requests_from_the_schema_are_answered_as_documented(served: Site, alice: AirflowClient) -> None:
    schema = schemathesis.openapi.from_url(f"{served.stack.url}/nnunet-api/openapi.json")
    alice.send("GET", API)
    headers = {"Authorization": f"Bearer {alice._token}"}
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {(operation.method, operation.path) for operation in operations} == {
        ("post", "/predictions"),
        ("get", "/predictions"),
        ("get", "/predictions/{prediction}"),
        ("get", "/predictions/{prediction}/result"),
        ("delete", "/predictions/{prediction}"),
    }
    for operation in operations:

        @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(base_url=f"{served.stack.url}/nnunet-api", headers=headers)
            assert answer.status_code < 500, (answer.status_code, answer.text)
            # Whether a dataset or a path is there the schema cannot say.
            case.validate_response(answer, excluded_checks=[positive_data_acceptance])

        ask()
