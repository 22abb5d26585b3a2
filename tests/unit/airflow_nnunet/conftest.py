"""A private AIRFLOW_HOME for this process, set before anything imports Airflow, and a migrated one for commands."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.airflow import PROJECT, environment, run

if TYPE_CHECKING:
    from support.orthanc import Orthanc
    from support.study_sensor import History

# A worker of pytest-xdist inherits the home of the process that started it; two must not write one airflow.cfg.
if "AIRFLOW_HOME" not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
    _home = tempfile.mkdtemp(prefix="airflow-unit-")
    atexit.register(shutil.rmtree, _home, ignore_errors=True)
    os.environ["AIRFLOW_HOME"] = _home


@pytest.fixture
def nnunet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Section [nnunet] of a fresh workspace with the fake backend; returns the workspace folder."""
    root = tmp_path / "nnunet"
    for name, value in {
        "WORKSPACE": str(root),
        "BACKEND": "fake",
        "POLL_INTERVAL": "0.05",
        "LOST_AFTER": "5",
        "DEFER_AFTER": "0.1",
    }.items():
        monkeypatch.setenv(f"AIRFLOW__NNUNET__{name}", value)
    return root


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty, migrated SQLite database."""
    home = tmp_path_factory.mktemp("airflow-home")
    done = run(["-m", "airflow", "db", "migrate"], environment(home))
    assert done.returncode == 0, done.stderr[-3000:]
    return home


@pytest.fixture
def home(migrated: Path, tmp_path: Path) -> Path:
    """A fresh AIRFLOW_HOME with a migrated database."""
    folder = tmp_path / "home"
    for name in ("dags", "plugins"):
        (folder / name).mkdir(parents=True)
    shutil.copy(migrated / "airflow.db", folder / "airflow.db")
    return folder


@pytest.fixture(scope="session")
def running_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A real archive on loopback, or a skip that says what to install."""
    from support.orthanc import running_archive

    with running_archive(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def orthanc(running_orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> Iterator[Orthanc]:
    """The archive, empty, behind the connection dicomweb_default. What the hook hushes for its process speaks again afterwards."""
    import logging

    import pydicom

    settings, loggers = pydicom.config.settings, [logging.getLogger(name) for name in ("dicomweb_client", "pydicom")]
    before = settings.reading_validation_mode, [logger.level for logger in loggers]
    running_orthanc.clear()
    monkeypatch.setenv("AIRFLOW_CONN_DICOMWEB_DEFAULT", running_orthanc.connection())
    yield running_orthanc
    settings.reading_validation_mode = before[0]
    for logger, level in zip(loggers, before[1], strict=True):
        logger.setLevel(level)


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    """Files of one MR series: the real one where there is real data, else a made one."""
    from support.orthanc import copy_real, made_series

    data = Path(os.environ.get("NNUNET_TEST_DATA", PROJECT.parent / "shared" / "data")) / "dicom" / "12-T1post-05670"
    return copy_real(data, tmp_path / "series") if data.is_dir() else made_series(tmp_path / "series", slices=22)


@pytest.fixture
def history(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> History:
    """Runs of a study sensor in a fresh workspace."""
    from support.study_sensor import History
    from support.supervisor import Supervisor

    return History(Supervisor.installed(monkeypatch))
