"""The prediction API of a running Airflow: taken, queued, predicted by a server or a job, fetched, refused, cancelled; and its faults."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_nnunet.rest_client import AirflowClient, wait_until
from nnunet_jobs.contract.workspace import Workspace
from support.serving import DATASET, ServerProcess, make_image, make_model
from support.stack import Site

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
