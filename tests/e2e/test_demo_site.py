"""``make up``: a small site that is started once, said where it is, found by commands, and stopped on request alone."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_nnunet.prediction_api.rest_client import AirflowClient
from devtools.stack import PROJECT, Stack

pytestmark = [pytest.mark.e2e]


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """A running demo site and what it said."""

    folder: Path
    port: int
    said: str

    def demo(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``make up``, ``make demo`` or ``make down``, as the Makefile calls them."""
        return demo(self.folder, *words)

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        """A line that a person types after ``source .demo/env``."""
        command = ["bash", "-c", f"source {self.folder}/env && {line}"]
        return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, timeout=120)


def demo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "devtools.demo", "--folder", str(folder), *words]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=300)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder, port = tmp_path_factory.mktemp("up") / ".demo", free_port()
    try:
        done = demo(folder, "--keep-up", "--no-run", "--port", str(port))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        yield Up(folder=folder, port=port, said=done.stdout)
    finally:
        Stack(folder / "airflow").stop()


def test_it_says_where_it_is_and_how_to_log_in(up: Up) -> None:
    stack = Stack(up.folder / "airflow")
    assert f"http://127.0.0.1:{up.port}" in up.said
    assert f"login         admin, password {stack.password}" in up.said
    assert f"source {up.folder / 'env'}" in up.said
    assert stat.S_IMODE((up.folder / "env").stat().st_mode) == 0o600, "it holds the password"


def test_the_second_start_says_the_same_and_stops_nothing(up: Up) -> None:
    stack = Stack(up.folder / "airflow")
    before = {name: stack.pid(name) for name in ("api-server", "scheduler", "triggerer", "dag-processor")}
    again = up.demo("--keep-up", "--port", str(up.port))
    assert again.returncode == 0
    assert "it is up already" in again.stdout
    assert f"password {stack.password}" in again.stdout
    other = up.demo()
    assert other.returncode == 1
    assert "`make down` first" in other.stdout
    assert {name: stack.pid(name) for name in before} == before


def test_a_taken_port_is_named_and_nothing_starts(up: Up, tmp_path: Path) -> None:
    done = demo(tmp_path / ".demo", "--keep-up", "--no-run", "--port", str(up.port))
    assert done.returncode == 1
    assert f"port {up.port} of 127.0.0.1 is taken" in done.stdout
    assert not Stack(tmp_path / ".demo" / "airflow").runs


def test_it_has_the_projects_datasets_and_all_pools(up: Up) -> None:
    stack = Stack(up.folder / "airflow")
    client = AirflowClient(stack.url, username=stack.username, password=stack.password)
    try:
        names = {path.stem for path in (PROJECT / "include" / "datasets").glob("*.yaml")}
        for dag_id in ("nnunet_demo", *(f"nnunet_{name}" for name in names), "nnunet_predictions"):
            client.wait_for_dag(dag_id)
        pools = {pool["name"] for pool in client.request("GET", "pools")["pools"]}
        assert set(json.loads((PROJECT / "include" / "pools.json").read_text())) <= pools
        assert client.import_errors() == {}
    finally:
        client.close()


def test_commands_find_it(up: Up) -> None:
    doctor = up.shell("airflow nnunet doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert f"{up.folder}/work/nnUNet_raw" in doctor.stdout
    assert "no dataset is registered" in up.shell("airflow nnunet dataset list").stdout
    image = up.folder / "data" / "phantom" / "imagesTr"
    asked = up.shell(f"airflow nnunet predict {next(image.iterdir())} --dataset 990")
    assert asked.returncode == 3
    assert "no model of the dataset is promoted" in asked.stderr, "the API answers, and nothing was trained yet"


def test_it_is_stopped_on_request(up: Up) -> None:
    stack = Stack(up.folder / "airflow")
    assert stack.runs
    assert "the demo has stopped" in up.demo("--down").stdout
    assert not stack.processes()
