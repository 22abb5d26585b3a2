"""Bring docker/compose.yaml up for real, with stand-ins for the public images, run one DAG through it, and take it down again.

PYTHONPATH=plugins python tests/support/compose_smoke.py --base IMAGE [--worker nnunet-worker:0.1.0-cpu] [--dag nnunet_phantom_tiny]

The engine is DOCKER_HOST's, with a bridge network; nnunet-airflow and the worker's image are there already (`make images`). Prints what
it saw. Not part of the tests: it needs 8 GB of images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from airflow_nnunet.prediction_api.rest_client import AirflowClient, wait_until

PROJECT = Path(__file__).resolve().parents[2]
STANDINS = Path(__file__).resolve().parent / "standins"
URL = "http://127.0.0.1:8080"


def call(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> str:
    """Run a command that must succeed; returns its output."""
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command} exited {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


class Compose:
    """One project of docker-compose with settings of its own."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.environment = {**os.environ, "COMPOSE_PROJECT_NAME": "nnunet_smoke", "COMPOSE_HTTP_TIMEOUT": "600", **settings}
        self.secrets = folder / "secrets"
        self.environment["NNUNET_SECRETS"] = str(self.secrets)
        call([sys.executable, PROJECT / "docker" / "make_secrets.py", "--folder", self.secrets])

    def __call__(self, *arguments: str | Path) -> str:
        """One command of docker-compose."""
        return call(["docker-compose", "-f", PROJECT / "docker" / "compose.yaml", *arguments], self.environment)

    def health(self) -> dict[str, str]:
        """Service to what Docker's health check says of it."""
        found = {}
        for container in self("ps", "--quiet").split():
            about = json.loads(call(["docker", "inspect", container], self.environment))[0]
            health = about["State"].get("Health", {}).get("Status", "none")
            found[about["Config"]["Labels"]["com.docker.compose.service"]] = health
        return found

    def unwell(self) -> list[str]:
        """Services that are not healthy; init has no check, it has ended."""
        return [name for name, health in self.health().items() if name != "init" and health != "healthy"]


def run_dag(compose: Compose, dag: str, timeout_s: float) -> None:
    """Trigger a DAG through nginx, wait for its end, say where its tasks ran."""
    password = json.loads((compose.secrets / "ui_passwords.json").read_text())["admin"]
    client = AirflowClient(URL, username="admin", password=password)
    try:
        client.wait_for_dag(dag, timeout_s=300)
        run = client.request("POST", f"dags/{dag}/dagRuns", json={"logical_date": None})["dag_run_id"]
        path = f"dags/{dag}/dagRuns/{run}"
        wait_until(
            lambda: client.request("GET", path)["state"] in ("success", "failed"), timeout_s=timeout_s, what=lambda: f"{run} did not end"
        )
        for task in client.request("GET", f"{path}/taskInstances")["task_instances"]:
            print(f"  {task['task_id']:20} {task['state']:10} try {task['try_number']} on {task['hostname']}, queue {task['queue']}")
        print(f"{run}: {client.request('GET', path)['state']}")
    finally:
        client.close()


def main(argv: Sequence[str]) -> int:
    """Up, look, run, down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="base image of the stand-ins, such as one made with debootstrap")
    parser.add_argument("--worker", default="nnunet-worker:0.1.0-cpu")
    parser.add_argument("--dag", default="nnunet_phantom_tiny")
    parser.add_argument("--files", default="4096", help="limit of open files of a worker")
    parser.add_argument("--timeout", type=float, default=3600)
    options = parser.parse_args(argv)
    settings = {"NNUNET_WORKER_IMAGE": options.worker, "NNUNET_SHM": "1gb", "NNUNET_FILES": options.files}
    for service in ("postgres", "redis", "nginx"):
        name = f"nnunet-standin-{service}"
        arguments = ["--target", service, "--build-arg", f"BASE_IMAGE={options.base}", "--tag", name]
        call(["docker", "build", "--network", "host", "--quiet", *arguments, STANDINS])
        settings[f"NNUNET_{service.upper()}_IMAGE"] = name
    with tempfile.TemporaryDirectory(prefix="nnunet_smoke_") as folder:
        compose = Compose(Path(folder), settings)
        try:
            start = time.monotonic()
            compose("up", "-d")
            wait_until(lambda: not compose.unwell(), timeout_s=600, what=lambda: f"not healthy: {compose.unwell()}")
            print(f"all healthy after {time.monotonic() - start:.0f} s: {', '.join(sorted(compose.health()))}")
            compose(
                "exec",
                "-T",
                "cpu-worker",
                "/opt/nnunet/venv/bin/python",
                "-m",
                "nnunet_jobs",
                "phantom",
                "/data/incoming/phantom",
                "--cases",
                "12",
            )
            run_dag(compose, options.dag, options.timeout)
        finally:
            compose("down", "--volumes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
