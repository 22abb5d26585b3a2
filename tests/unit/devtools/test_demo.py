"""``make up`` without a site: what is said and left alone beside a running one, its settings, and whose processes a stop ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from airflow_nnunet.backends.local import LocalBackend
from devtools import demo
from devtools.demo_site import make_stack, write_env
from devtools.stack import PROJECT, Stack
from devtools.stack_config import read_config, write_config
from nnunet_jobs.contract.storage.workspace import Workspace
from support.jobs import make_spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A demo's folder with the configuration of a site, of which nothing runs."""
    home = tmp_path / "the demo" / "airflow"
    home.mkdir(parents=True)
    write_config(home, template=PROJECT / "airflow.cfg.template", dags=PROJECT / "dags", settings={}, port=8123)
    return home.parent


@pytest.fixture
def running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The site of the folder as if it ran; what is done to it."""
    done: list[str] = []
    monkeypatch.setattr(Stack, "runs", True)
    monkeypatch.setattr(Stack, "start", lambda stack: done.append("start"))
    monkeypatch.setattr(Stack, "stop", lambda stack: done.append("stop"))
    return done


def test_a_second_start_says_the_login_and_touches_nothing(folder: Path, running: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--folder", str(folder), "--keep-up", "--port", "9000"]) == 0
    said = capsys.readouterr().out
    stack = Stack(folder / "airflow")
    assert "it is up already" in said
    assert "UI            http://127.0.0.1:8123\n" in said, "where it is, and not where it would have been"
    assert f"login         admin, password {stack.password}\n" in said
    assert running == []


def test_the_demo_beside_a_running_site_stops_nothing(folder: Path, running: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--folder", str(folder)]) == 1
    assert "stop it with `make down` first" in capsys.readouterr().out
    assert running == []
    assert demo.main(["--folder", str(folder), "--down"]) == 0
    assert running == ["stop"]


def test_a_taken_port_is_named_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert demo.main(["--folder", str(tmp_path / "demo"), "--keep-up", "--port", str(port)]) == 1
    assert f"port {port} of 127.0.0.1 is taken" in capsys.readouterr().out
    assert not (tmp_path / "demo").exists()


def test_the_site_has_the_projects_dags_and_datasets_and_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = folder / "datasets"
    stack = make_stack(folder, own, [folder / "data"], slots=2, port=8123)
    monkeypatch.setattr(Stack, "airflow", lambda stack, *arguments: "")
    stack._components.clear()
    stack.start()  # no process, only its files
    config = read_config(folder / "airflow")
    assert config.get("core", "dags_folder") == str(PROJECT / "dags")
    bundles = json.loads(config.get("dag_processor", "dag_bundle_config_list"))
    assert [bundle["kwargs"] for bundle in bundles] == [{}, {"path": str(folder / "dags")}]
    assert str(own) in (folder / "dags" / "nnunet_demo.py").read_text()
    assert config.get("api", "port") == "8123"
    assert config.get("nnunet", "workspace") == str(folder / "work")
    recipe = demo.recipe(folder / "data", name="Phantom", dataset_id=990)
    assert yaml.safe_load(yaml.safe_dump(recipe))["select"]["promote"] == "if_better"


def test_its_environment_leads_commands_to_it_and_is_nobody_elses_to_read(folder: Path) -> None:
    stack = Stack(folder / "airflow")
    path = write_env(folder, stack)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "it holds the password"
    names = ("AIRFLOW_HOME", "NNUNET_API_URL", "NNUNET_API_USERNAME", "NNUNET_API_PASSWORD")
    show = f"import json, os; print(json.dumps([os.environ[name] for name in {json.dumps(names)}]))"
    command = ["bash", "-c", f"source '{path}' && python -c '{show}'"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == [str(stack.home), "http://127.0.0.1:8123", "admin", stack.password]


def test_a_stop_ends_what_the_site_started_and_not_what_a_person_started_who_works_with_it(
    folder: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has read the site's environment into a shell has its AIRFLOW_HOME in an editor, and in the ``make`` that stops the site."""
    stack = Stack(folder / "airflow")
    wait = [sys.executable, "-c", "import time; time.sleep(600)"]
    theirs = subprocess.Popen(wait, env={**os.environ, "AIRFLOW_HOME": str(stack.home)})
    component = subprocess.Popen(wait, env=stack.environment(), start_new_session=True)
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    job = subprocess.Popen(wait, env=LocalBackend()._environment(make_spec(workspace, "job")), start_new_session=True)
    try:
        assert sorted(stack.processes()) == sorted([component.pid, job.pid])
        stack.stop()
        assert [process.wait(timeout=30) for process in (component, job)] == [-signal.SIGTERM] * 2
        assert theirs.poll() is None
    finally:
        for process in (theirs, component, job):
            process.kill()
            process.wait()
