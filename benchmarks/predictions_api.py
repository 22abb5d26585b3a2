"""Measures the prediction API from POST to the fetched result, split into Airflow's part and ours.

    python -m benchmarks.predictions_api [--rounds 5]

A private Airflow (LocalExecutor, SQLite) gets one case after the other, with a warm predictor server and without one,
where each request's job loads the model itself. The network is small and has random weights, the image has 36 x 48 x 40
voxels, because the path and not the network is measured.
"""

from __future__ import annotations

import argparse
import datetime as dt
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]

from airflow_nnunet.prediction_api import DAG_ID, TASK_ID, client  # noqa: E402
from devtools.stack import Stack  # noqa: E402
from devtools.testbed.serving import ServerProcess, make_image, make_workspace  # noqa: E402
from devtools.testbed.stages import DATASET  # noqa: E402
from nnunet_jobs.contract.storage.workspace import Workspace  # noqa: E402

LOOK_S = 0.05
ASKED, ANSWERED = "asking ", "predictor server "


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Holds the seconds between two moments, and the part that they belong to."""

    name: str
    whose: str
    seconds: float


def measure(stack: Stack, api: client.PredictionsClient, image: Path, workspace: Workspace, target: Path) -> list[Stage]:
    """Measure one case from POST to its file, and return the stages."""
    posted = time.time()
    prediction = api.predict([image], dataset=DATASET)
    taken = time.time()
    found = api.wait(prediction, timeout_s=300, interval_s=LOOK_S)
    if found["status"] != "succeeded":
        raise RuntimeError(f"{prediction}: {found}")
    api.save_result(prediction, target)
    fetched = time.time()
    run = stack.client.request("GET", f"dags/{DAG_ID}/dagRuns/{prediction}")
    task = stack.client.task_instance(DAG_ID, prediction, TASK_ID)
    asked, answered, by = work_of(stack, prediction, workspace, seconds(task["start_date"]))
    moments = [
        ("POST: upload, disk, run created", "both", taken - posted),
        ("the scheduler begins the run", "Airflow", seconds(run["start_date"]) - taken),
        ("its task starts", "Airflow", seconds(task["start_date"]) - max(taken, seconds(run["start_date"]))),
        ("the task asks", "ours", asked - seconds(task["start_date"])),
        (f"{by} predicts", "ours", answered - asked),
        ("the task ends", "Airflow" if by == "a job" else "ours", seconds(task["end_date"]) - answered),
        ("the run ends", "Airflow", seconds(run["end_date"]) - seconds(task["end_date"])),
        (f"seen (asked every {LOOK_S} s), fetched", "client", fetched - seconds(run["end_date"])),
        ("POST to result", "all", fetched - posted),
    ]
    return [Stage(name=name, whose=whose, seconds=value) for name, whose, value in moments]


def work_of(stack: Stack, prediction: str, workspace: Workspace, started: float) -> tuple[float, float, str]:
    """Return when the task asked, when it had its answer, and from whom."""
    path = f"dags/{DAG_ID}/dagRuns/{prediction}/taskInstances/{TASK_ID}/logs/1"
    lines = stack.client.request("GET", path, params={"full_content": True})["content"]
    said = {str(line.get("event")): seconds(line["timestamp"]) for line in lines if isinstance(line, dict) and line.get("timestamp")}
    answered = [at for event, at in said.items() if event.startswith(ANSWERED) and event.endswith("has answered")]
    if answered:
        return next(at for event, at in said.items() if event.startswith(ASKED)), answered[0], "the server"
    job = stack.client.xcom(DAG_ID, prediction, TASK_ID, key="nnunet_job")
    folder = Path(workspace.jobs) / job["job_id"]
    return (folder / "spec.json").stat().st_mtime, (folder / "result.json").stat().st_mtime, "a job"


def seconds(moment: str) -> float:
    """Return an ISO time as seconds since 1970."""
    return dt.datetime.fromisoformat(moment).timestamp()


def show(title: str, rounds: list[list[Stage]]) -> None:
    """Print one table with median and range of each stage, and the total of each part."""
    print(f"\n{title}: median of {len(rounds)} (lowest to highest), seconds")
    for stages in zip(*rounds, strict=True):
        values = sorted(stage.seconds for stage in stages)
        print(f"  {stages[0].name:<42}{stages[0].whose:<9}{statistics.median(values):>7.2f}  ({values[0]:.2f} to {values[-1]:.2f})")
    for whose in ("Airflow", "ours"):
        total = statistics.median(sum(stage.seconds for stage in stages if stage.whose == whose) for stages in rounds)
        print(f"  {'of this ' + whose:<51}{total:>7.2f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="predictions-"))
    try:
        workspace = make_workspace(folder / "work")
        image = make_image(folder / "case.nii.gz")
        (folder / "dags").mkdir()
        shutil.copy(PROJECT / "dags" / "nnunet_predictions.py", folder / "dags")
        socket = folder / "serve.sock"
        environment = {
            "PYTHONPATH": str(PROJECT / "plugins"),
            "AIRFLOW__NNUNET__WORKSPACE": str(folder / "work"),
            "AIRFLOW__NNUNET__PREDICTOR_SERVERS": f"unix:{socket}",
            "AIRFLOW__NNUNET__CPU_SLOTS": "4",
            "AIRFLOW__NNUNET__POLL_INTERVAL": "0.5",
        }
        with ExitStack() as running:
            stack = running.enter_context(Stack(folder / "home", dags=folder / "dags", environment=environment))
            stack.client.set_pool("predictions", 4)
            stack.client.wait_for_dag(DAG_ID)
            api = client.PredictionsClient(stack.url, username=stack.username, password=stack.password)
            running.callback(api.close)
            results: dict[str, list[list[Stage]]] = {}
            for title in ("without a server", "with a warm server"):
                if title != "without a server":
                    server = ServerProcess(workspace, folder / "server.log", temporary=folder / "tmp", uds=socket)
                    running.enter_context(server)
                rounds: list[Any] = [measure(stack, api, image, workspace, folder / "result.nii.gz") for _ in range(options.rounds + 1)]
                results[title] = rounds[1:]  # the first one also fills caches
        for title, rounds in results.items():
            show(title, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
