"""Faults 47 to 56 of the prediction API, under a running Airflow."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import given
from schemathesis.specs.openapi.checks import positive_data_acceptance

from airflow_nnunet.prediction_api.rest_client import AirflowClient, wait_until
from airflow_nnunet.prediction_api.store import Draft, new_id
from airflow_nnunet.prediction_api.tenants import Tenant
from devtools.testbed.serving import DATASET, ServerProcess, make_image
from support.fuzzing import quietly, rounds
from support.predictions_api import (
    API,
    DAG,
    LATE_DAG,
    UNKNOWN,
    accepted,
    asking,
    finished,
    paused,
    post,
    requests_of,
    runs_of,
)
from support.stack import COMMON_QUOTA, QUEUE_LIMIT, Site, kill

pytestmark = pytest.mark.e2e


def test_an_upload_whose_server_died_before_there_was_a_run_is_taken_again(served: Site, alice: AirflowClient, scan: Path) -> None:
    tenant = Tenant(team=None, workspace=served.workspace, quota=1, limit=1, keep_days=1, upload_mib=1)
    prediction = new_id(tenant, "alice", "visit 2")
    with Draft(tenant, prediction) as draft:
        shutil.copyfile(scan, draft.image(0, ".nii.gz"))
        draft.complete(dataset=DATASET, model=None)
        draft.publish()
    assert alice.send("GET", f"{API}/{prediction}").status_code == 404
    assert accepted(post(alice, scan, **{"Idempotency-Key": "visit 2"})) == prediction
    assert finished(alice, prediction)["status"] == "succeeded"


def test_fault_47_the_api_server_is_killed_right_after_its_answer(served: Site, alice: AirflowClient, scan: Path) -> None:
    prediction = accepted(post(alice, scan))
    served.stack.kill("api-server")
    assert prediction in requests_of(served), "the images are on the disk"
    served.stack.restart("api-server")
    assert finished(alice, prediction)["status"] == "succeeded"


def test_cancel_while_a_server_works_ends_the_task_and_begins_no_job(
    served: Site, alice: AirflowClient, scan: Path, stopped: ServerProcess
) -> None:
    prediction = accepted(post(alice, scan))
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
    served: Site, alice: AirflowClient, scan: Path, stopped: ServerProcess
) -> None:
    prediction = accepted(post(alice, scan))
    served.stack.client.wait_for_task(DAG, prediction, "predict", "running", timeout_s=60)
    asking(served, prediction)
    kill(*served.task_processes())
    stopped.process.send_signal(signal.SIGCONT)
    assert finished(alice, prediction)["status"] == "succeeded"
    assert stopped.metric('nnunet_requests_total{status="200"}') == 1
    (task,) = served.stack.client.task_instances(DAG, prediction)
    assert task["try_number"] == 2


def test_fault_48_fifty_posts_with_one_key_are_one_prediction(
    served: Site, alice: AirflowClient, bob: AirflowClient, scan: Path, tmp_path: Path
) -> None:
    with paused(served, DAG, LATE_DAG):
        before, folders = runs_of(served, DAG), requests_of(served)
        alice.send("GET", API)  # the login happens once and not in fifty threads
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda _: post(alice, scan, **{"Idempotency-Key": "visit 1"}), range(50)))
        assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers if answer.status_code != 202]
        (prediction,) = {accepted(answer) for answer in answers}
        assert runs_of(served, DAG) == before + 1
        assert requests_of(served) == sorted([*folders, prediction])

        other = make_image(tmp_path / "other.nii.gz", seed=3)
        refused = post(alice, other, **{"Idempotency-Key": "visit 1"})
        assert refused.status_code == 422
        assert "Idempotency-Key" in refused.json()["detail"]
        assert requests_of(served) == sorted([*folders, prediction])
        assert accepted(post(bob, scan, **{"Idempotency-Key": "visit 1"})) != prediction, "another user's key is another key"


def test_fault_49_quota_and_full_queue_are_refused_with_a_time_to_come_back(
    served: Site, alice: AirflowClient, bob: AirflowClient, scan: Path
) -> None:
    with paused(served, DAG, LATE_DAG):
        for _ in range(COMMON_QUOTA):
            accepted(post(alice, scan))
        folders = requests_of(served)
        refused = post(alice, scan)
        assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (429, True)
        for _ in range(QUEUE_LIMIT - COMMON_QUOTA):
            accepted(post(bob, scan))
        full = post(bob, scan)
        assert (full.status_code, int(full.headers["retry-after"]) > 0) == (503, True)
        assert full.json()["detail"] == "the queue is full"
        assert requests_of(served) == folders, "what is refused leaves no files"
    accepted(post(alice, scan))


def test_fault_54_another_teams_prediction_is_unknown(served: Site, alice: AirflowClient, bob: AirflowClient, scan: Path) -> None:
    with paused(served, DAG, LATE_DAG):
        of_alice, of_bob = accepted(post(alice, scan)), accepted(post(bob, scan))
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


def test_without_a_login_or_the_right_to_trigger_nothing_is_taken(served: Site, scan: Path) -> None:
    with httpx.Client(base_url=served.stack.url, trust_env=False) as nobody:
        for method, path in (("POST", ""), ("GET", ""), ("GET", f"/{UNKNOWN}"), ("GET", f"/{UNKNOWN}/result"), ("DELETE", f"/{UNKNOWN}")):
            answer = nobody.request(method, f"/{API}{path}")
            assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json"), (method, path)
    carol = served.user("carol")  # a viewer
    folders = requests_of(served)
    assert post(carol, scan).status_code == 403
    assert carol.send("GET", API).status_code == 200
    assert carol.send("DELETE", f"{API}/{UNKNOWN}").status_code == 403
    assert requests_of(served) == folders
    carol.close()


def test_fault_50_an_aborted_upload_leaves_no_files(served: Site, alice: AirflowClient, scan: Path) -> None:
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


def test_fault_53_and_55_names_that_a_client_gives_are_seen_nowhere(served: Site, alice: AirflowClient, scan: Path) -> None:
    canary = "KANARI^VOGEL"
    names = (f"{canary};$(touch x).nii.gz", f"../../{canary}.nii.gz", f"{canary}\n.nii.gz", f"/etc/{canary}")
    found = []
    for name in names:
        answer = alice.send("POST", API, data={"dataset": DATASET}, files={"images": (name, scan.read_bytes())})
        found.append(accepted(answer))
    assert {finished(alice, prediction)["status"] for prediction in found} == {"succeeded"}
    result = alice.send("GET", f"{API}/{found[0]}/result")
    assert canary not in str(result.headers)
    for folder in (served.root / "work", served.stack.home):  # paths, logs of tasks, jobs and components, SQLite's database
        for path in folder.rglob("*"):
            assert canary not in str(path)
            assert not path.is_file() or canary.encode() not in path.read_bytes(), path
    for fields in ({"dataset": "Dataset007_Cascade;id"}, {"dataset": DATASET, "model": "../m1"}, {"dataset": DATASET, "model": "m1\n"}):
        assert alice.send("POST", API, data=fields, files={"images": ("a.nii.gz", scan.read_bytes())}).status_code == 422


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def is_routed(case: Any) -> bool:
    """Starlette's mounts do not match line breaks, so Airflow itself answers such an address, with its own 404."""
    named = str((case.path_parameters or {}).get("prediction", ""))
    return "\n" not in named and "%0A" not in named


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
    for _ in rounds():
        for operation in operations:

            @quietly
            @given(case=operation.as_strategy().filter(is_routed))
            def ask(case: Any) -> None:
                answer = case.call(base_url=f"{served.stack.url}/nnunet-api", headers=headers)
                assert answer.status_code < 500, (answer.status_code, answer.text)
                # Whether a dataset or a path is there the schema cannot say.
                case.validate_response(answer, excluded_checks=[positive_data_acceptance])

            ask()
