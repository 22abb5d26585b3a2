"""The prediction API of a running Airflow: taken, queued, predicted by a server or by a job, fetched, cancelled, removed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from airflow_nnunet.prediction_api.rest_client import AirflowClient, wait_until
from devtools.testbed.serving import ServerProcess
from support.predictions_api import (
    API,
    DAG,
    UNKNOWN,
    accepted,
    cleanup,
    finished,
    paused,
    post,
    predict,
    requests_of,
)
from support.stack import Site, job_processes

pytestmark = pytest.mark.e2e


def test_without_a_server_the_request_loads_the_model_itself(served: Site, alice: AirflowClient, scan: Path) -> None:
    prediction = accepted(post(alice, scan))
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


def test_with_a_server_nothing_is_loaded_and_the_result_is_the_same(served: Site, alice: AirflowClient, scan: Path, tmp_path: Path) -> None:
    alone = finished(alice, accepted(post(alice, scan)))
    with ServerProcess(served.workspace, tmp_path / "server.log", temporary=tmp_path / "tmp", uds=served.server_socket) as server:
        prediction = accepted(post(alice, scan))
        found = finished(alice, prediction)
        assert found["status"] == "succeeded", found
        assert server.metric('nnunet_requests_total{status="200"}') == 1
    assert found["volumes_ml"] == alone["volumes_ml"]
    contents = [alice.send("GET", f"{API}/{item['id']}/result").content for item in (alone, found)]
    assert contents[0] == contents[1]
    states = served.stack.client.task_instances(DAG, prediction)
    assert [item["state"] for item in states] == ["success"]


def test_retention_removes_what_is_old_and_what_no_run_knows(served: Site, alice: AirflowClient, scan: Path) -> None:
    old, fresh = accepted(post(alice, scan)), accepted(post(alice, scan))
    assert finished(alice, old)["status"] == finished(alice, fresh)["status"] == "succeeded"
    root = Path(served.workspace.output_roots[0]) / "requests"
    orphan = root / UNKNOWN
    shutil.copytree(root / fresh, orphan)
    half = root / ".partial-0123456789abcdef"
    half.mkdir()
    with paused(served, DAG):
        waiting = accepted(post(alice, scan))
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


def test_the_command_posts_waits_and_saves(served: Site, scan: Path, tmp_path: Path) -> None:
    saved = tmp_path / "segmentation.nii.gz"
    done = predict(served, scan, "--output", saved)
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
    refused = predict(served, scan, scan)
    assert (refused.returncode, "the model needs 1" in refused.stderr) == (3, True), refused.stderr
    away = predict(served, scan, url="http://127.0.0.1:9")
    assert (away.returncode, "no answer" in away.stderr) == (4, True)


def test_cancel_stops_the_job_and_says_so(served: Site, alice: AirflowClient, scan: Path) -> None:
    prediction = accepted(post(alice, scan))
    job = served.job(DAG, prediction, "predict")
    assert alice.send("DELETE", f"{API}/{prediction}").status_code == 202
    wait_until(lambda: job.state().phase.final, timeout_s=60, what=lambda: f"still {job.state()}")
    assert job.cancel_requested() is not None
    wait_until(lambda: not job_processes(job), timeout_s=30, what=lambda: "its processes still run")
    assert finished(alice, prediction)["status"] == "cancelled"
    assert alice.send("DELETE", f"{API}/{prediction}").status_code == 204
    refused = alice.send("GET", f"{API}/{prediction}/result")
    assert refused.status_code == 409
    assert "cancelled" in refused.json()["detail"]


def test_a_broken_image_fails_with_its_reason_by_a_server_and_by_a_job(
    served: Site, alice: AirflowClient, scan: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "MEIER^ANNA_0000.nii.gz"
    broken.write_bytes(gzip.compress(gzip.decompress(scan.read_bytes())[:2000]))
    alone = finished(alice, accepted(post(alice, broken)))
    with ServerProcess(served.workspace, tmp_path / "server.log", temporary=tmp_path / "tmp", uds=served.server_socket):
        by_server = finished(alice, accepted(post(alice, broken)))
    for found in (alone, by_server):
        assert found["status"] == "failed"
        assert "0000.nii.gz" in found["reason"], found
        assert "MEIER" not in found["reason"]
        tasks = served.stack.client.task_instances(DAG, found["id"])
        assert [item["try_number"] for item in tasks] == [1], "the same image fails the same way: no retry"


def test_a_path_below_an_input_root_is_copied_under_our_own_name(served: Site, alice: AirflowClient, scan: Path) -> None:
    folder = Path(served.workspace.input_roots[0]) / "visit"
    folder.mkdir()
    shutil.copyfile(scan, folder / scan.name)
    with paused(served, DAG):
        found = [accepted(alice.send("POST", API, json={"dataset": "7", "cases": cases})) for cases in ("visit", f"visit/{scan.name}")]
        for prediction in found:
            images = Path(served.workspace.output_roots[0]) / "requests" / prediction / "images"
            assert [path.name for path in images.iterdir()] == [f"{prediction}_0000.nii.gz"]
            assert next(images.iterdir()).read_bytes() == scan.read_bytes()
