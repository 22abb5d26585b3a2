"""The two ways to install: the wheel by pip into somebody's Airflow, and the plain project folder without pip."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest

from support.installed import build_wheel, environment, install, listing, run, uv

PROJECT = Path(__file__).resolve().parents[2]
AIRFLOW = ["apache-airflow>=3.3,<4", "apache-airflow-providers-standard", "pyyaml"]


@pytest.fixture(scope="module")
def bare_airflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment that holds Airflow and nothing of ours; no torch either."""
    return environment(tmp_path_factory.mktemp("bare") / "venv", *AIRFLOW)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built distribution."""
    return build_wheel(tmp_path_factory.mktemp("dist"))


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
    install(bare_airflow, wheel)
    try:
        providers = listing(bare_airflow, home, "providers", "list")
        assert "airflow-provider-nnunet" in {provider["package_name"] for provider in providers}
        plugins = listing(bare_airflow, home, "plugins")
        assert [plugin["name"] for plugin in plugins].count("nnunet") == 1
        assert "doctor" in run([bare_airflow, "-m", "airflow", "nnunet", "--help"], home=home).stdout
        code = (
            "import sys, airflow_nnunet.operators.train, airflow_nnunet.pipelines.dag_builder; "
            "heavy = {'torch', 'nnunetv2', 'numpy', 'nibabel'} & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        run([bare_airflow, "-c", code], home=home)
    finally:
        uv("pip", "uninstall", "--quiet", "--python", bare_airflow, "airflow-provider-nnunet")


def test_the_image_of_airflow_copies_all_that_the_wheel_is_built_from(wheel: Path, tmp_path: Path) -> None:
    """Built from what Dockerfile.airflow copies, the wheel holds the same files."""
    copied = re.findall(r"^COPY (.+) /build/\S*$", (PROJECT / "docker" / "Dockerfile.airflow").read_text(), re.MULTILINE)
    ignored = (PROJECT / ".dockerignore").read_text().splitlines()
    build = tmp_path / "build"
    build.mkdir()
    for name in " ".join(copied).split():
        source = PROJECT / name.rstrip("/")
        assert f"!{source.name}" in ignored, f".dockerignore keeps {name} out of the build"
        shutil.copytree(source, build / source.name) if source.is_dir() else shutil.copy(source, build / source.name)
    uv("build", "--quiet", "--wheel", "--out-dir", tmp_path / "dist", build)
    (built,) = (tmp_path / "dist").glob("*.whl")
    contents = [
        {name for name in zipfile.ZipFile(path).namelist() if "__pycache__" not in name and not name.endswith("RECORD")}
        for path in (built, wheel)
    ]
    assert contents[0] == contents[1]
