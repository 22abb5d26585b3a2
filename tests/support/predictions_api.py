"""What the tests of the prediction API do with a running Airflow."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from airflow_nnunet.prediction_api.rest_client import AirflowClient, wait_until
from devtools.stack_config import password_file
from devtools.testbed.serving import DATASET
from support.airflow import environment, run
from support.stack import Site

API = "nnunet-api/predictions"
DAG, LATE_DAG = "nnunet_predictions", "nnunet_predictions_late"
UNKNOWN = "p-" + "0" * 32


def post(client: AirflowClient, image: Path, **headers: str) -> httpx.Response:
    """One case with a file name that tells of a patient."""
    files = [("images", (image.name, image.read_bytes(), "application/gzip"))]
    return client.send("POST", API, data={"dataset": DATASET}, files=files, headers=headers)


def accepted(answer: httpx.Response) -> str:
    """The id of a prediction that was taken."""
    assert answer.status_code == 202, answer.text
    found: str = answer.json()["id"]
    assert answer.headers["location"] == f"/{API}/{found}"
    return found


def finished(client: AirflowClient, prediction: str, *, timeout_s: float = 120) -> dict[str, Any]:
    """What is known about a prediction once it has ended."""
    seen: dict[str, Any] = {}

    def over() -> bool:
        nonlocal seen
        seen = client.send("GET", f"{API}/{prediction}").json()
        return seen["status"] not in ("queued", "running")

    wait_until(over, timeout_s=timeout_s, what=lambda: f"not finished: {seen}")
    return seen


def requests_of(site: Site) -> list[str]:
    """Folders of the common space's requests, those that come in included."""
    folder = Path(site.workspace.output_roots[0]) / "requests"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def cleanup(site: Site) -> None:
    """Run the clean-up."""
    client = site.stack.client
    client.wait_for_dag("nnunet_prediction_cleanup")
    run_id = client.trigger("nnunet_prediction_cleanup")
    assert client.wait_for_run("nnunet_prediction_cleanup", run_id, timeout_s=60) == "success", client.log(
        "nnunet_prediction_cleanup", run_id, "remove_old"
    )


def predict(site: Site, *arguments: str | Path, user: str = "alice", url: str | None = None) -> subprocess.CompletedProcess[str]:
    """``airflow nnunet predict`` as a user."""
    password = json.loads(password_file(site.stack.home).read_text())[user]
    env = {**environment(site.root / "cli-home"), "NNUNET_API_USERNAME": user, "NNUNET_API_PASSWORD": password}
    return run(["-m", "airflow_nnunet", "predict", *arguments, "--dataset", DATASET, "--url", url or site.stack.url], env)


def asking(site: Site, prediction: str) -> None:
    """Wait until the request's task waits for the server."""
    wait_until(
        lambda: "asking 1 predictor server" in site.stack.client.log(DAG, prediction, "predict"),
        timeout_s=60,
        what=lambda: f"not asked: {site.stack.client.states(DAG, prediction)}",
    )


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
    """How many runs a DAG has."""
    return int(site.stack.client.request("GET", f"dags/{dag_id}/dagRuns", params={"limit": 1})["total_entries"])
