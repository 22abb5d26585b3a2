"""Environments as users have them: a stock Airflow, and the built wheel to put into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def run(
    command: Sequence[str | Path],
    *,
    home: Path | None = None,
    check: bool = True,
    more: Mapping[str, str] | None = None,
    timeout: int = 300,
) -> subprocess.CompletedProcess[str]:
    """A command in an environment without anything of this session's Airflow, Python or nnU-Net."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON", "VIRTUAL_ENV", "nnUNet"))}
    if home is not None:
        environment |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    words = [str(part) for part in command]
    done = subprocess.run(words, env=environment | dict(more or {}), capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        pytest.fail(f"{words} exited {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def listing(python: Path, home: Path, *command: str, more: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Airflow's JSON listing, without the warnings that may stand above it."""
    lines = run([python, "-m", "airflow", *command, "--output", "json"], home=home, more=more).stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("["))
    rows: list[dict[str, str]] = json.loads("\n".join(lines[first:]))
    return rows


def uv(*arguments: str | Path) -> None:
    """A command of uv."""
    run([sys.executable, "-m", "uv", *arguments])


def environment(folder: Path, *packages: str | Path) -> Path:
    """Python of a fresh environment that holds these packages in the pinned versions."""
    uv("venv", "--quiet", "--python", sys.executable, folder)
    python = folder / "bin" / "python"
    install(python, *packages)
    return python


def install(python: Path, *packages: str | Path) -> None:
    """Put packages into an environment, in the pinned versions."""
    uv("pip", "install", "--quiet", "--python", python, "--constraint", PROJECT / "constraints.txt", *packages)


def build_wheel(out: Path) -> Path:
    """The distribution, as its users get it."""
    uv("build", "--quiet", "--wheel", "--out-dir", out, PROJECT)
    (built,) = out.glob("*.whl")
    return built
