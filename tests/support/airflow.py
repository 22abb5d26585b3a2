"""Helpers for tests of the Airflow wing: a private AIRFLOW_HOME, commands in it, and the little of a task's context that operators use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


def environment(home: Path, **options: str) -> dict[str, str]:
    """Environment of an Airflow process below ``home``, with options of section [nnunet]; foreign settings stay out."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    found |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "plugins"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "PYTHONPATH": os.pathsep.join([str(PROJECT / "plugins"), str(PROJECT / "tests")]),
    }
    return found | {f"AIRFLOW__NNUNET__{name.upper()}": value for name, value in options.items()}


def run(command: Sequence[str | Path], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a Python program or module of this interpreter and keep what it says."""
    argv = [sys.executable, *(str(part) for part in command)]
    return subprocess.run(argv, env=dict(env), capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)


@dataclass
class Task:
    """The part of Airflow's running task instance that operators look at."""

    dag_id: str = "dag"
    run_id: str = "run"
    task_id: str = "task"
    map_index: int = -1
    max_tries: int = 3
    try_number: int = 1
    pushed: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        """Keep what would go to the database."""
        self.pushed[key] = value


class OutletEvents:
    """Keeps the asset events that an operator sends."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def __getitem__(self, alias: Any) -> OutletEvents:
        return self

    def add(self, asset: Any, extra: dict[str, Any]) -> None:
        """Keep an event."""
        self.sent.append((asset.uri, extra))


def context(**task: Any) -> Any:
    """A task's context, as far as operators use it."""
    return {"ti": Task(**task), "outlet_events": OutletEvents()}
