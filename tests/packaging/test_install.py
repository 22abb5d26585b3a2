"""The two ways to install: the wheel by pip into somebody's Airflow, and the plain project folder without pip."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
AIRFLOW = ["apache-airflow>=3.3,<4", "apache-airflow-providers-standard", "pyyaml"]


def run(command: Sequence[str | Path], *, home: Path | None = None, check: bool = True) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON", "VIRTUAL_ENV", "nnUNet"))}
    if home is not None:
        environment |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, timeout=300, check=False)
    if check and done.returncode:
        pytest.fail(f"{command} exited {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def listing(python: Path, home: Path, *command: str) -> list[dict[str, str]]:
    """Airflow's JSON listing, without the warnings that may stand above it."""
    lines = run([python, "-m", "airflow", *command, "--output", "json"], home=home).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("["))
    rows: list[dict[str, str]] = json.loads("\n".join(lines[first:]))
    return rows


def uv(*arguments: str | Path) -> None:
    run([sys.executable, "-m", "uv", *arguments])


@pytest.fixture(scope="module")
def bare_airflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment that holds Airflow and nothing of ours; no torch either."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    uv("venv", "--quiet", "--python", sys.executable, folder)
    uv("pip", "install", "--quiet", "--python", folder / "bin/python", "--constraint", PROJECT / "constraints.txt", *AIRFLOW)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built distribution."""
    out = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--wheel", "--out-dir", out, PROJECT)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"airflow_nnunet", "nnunet_jobs"}
    assert not [name for name in names if name.endswith((".nii.gz", ".dcm", ".pth"))]


def test_plain_project_folder_works_without_pip(bare_airflow: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for folder in ("dags", "plugins", "include"):
        shutil.copytree(PROJECT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    run([bare_airflow, "-m", "airflow", "db", "migrate"], home=home)
    plugins = listing(bare_airflow, home, "plugins")
    assert [plugin["name"] for plugin in plugins].count("nnunet") == 1
    run([bare_airflow, "-m", "airflow", "dags", "reserialize"], home=home)
    errors = listing(bare_airflow, home, "dags", "list-import-errors")
    assert errors == []
    dags = {dag["dag_id"] for dag in listing(bare_airflow, home, "dags", "list")}
    assert {"nnunet_prediction", "hospital_etl_example", "nnunet_hippocampus"} <= dags


def test_wheel_in_an_existing_airflow(bare_airflow: Path, wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    uv("pip", "install", "--quiet", "--python", bare_airflow, "--constraint", PROJECT / "constraints.txt", wheel)
    try:
        providers = listing(bare_airflow, home, "providers", "list")
        assert "airflow-provider-nnunet" in {provider["package_name"] for provider in providers}
        plugins = listing(bare_airflow, home, "plugins")
        assert [plugin["name"] for plugin in plugins].count("nnunet") == 1
        assert "doctor" in run([bare_airflow, "-m", "airflow", "nnunet", "--help"], home=home)
        code = (
            "import sys, airflow_nnunet.operators.train, airflow_nnunet.dag_builder; "
            "heavy = {'torch', 'nnunetv2', 'numpy', 'nibabel'} & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        run([bare_airflow, "-c", code], home=home)
    finally:
        uv("pip", "uninstall", "--quiet", "--python", bare_airflow, "airflow-provider-nnunet")
