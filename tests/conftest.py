"""Shared fixtures. Heavy imports happen in the tests that need them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_jobs.contract.storage.workspace import Workspace
from support.containers import make_engine
from support.engine import Engine

# As jobs have it, see nnunet_jobs.runner.attempt_limits; read once, when torch is imported. Test workers share the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

PROJECT = Path(__file__).resolve().parent.parent
# Two workers end at about the same time when the longest files come first.
LONGEST = (
    "tests/e2e/",
    "tests/chaos/test_training",
    "tests/unit/nnunet_jobs/preprocessing/",
    "tests/unit/nnunet_jobs/selection/",
    "tests/packaging/",
    "tests/contract/",
    "tests/chaos/",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Whole files for each worker of pytest-xdist, where there is one."""
    from support.parallel import ByRoom

    return ByRoom(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((number for number, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def _umask_of_its_own() -> Iterator[None]:
    """Jobs and commands set the umask of their process for good; here they run in the process of the next test too."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """What a command or Airflow's own start changes about loggers of this process is put back: other tests read what is logged."""
    loggers = [logging.getLogger(name) for name in (None, "nnunet_jobs", "airflow_nnunet")]
    before = [(logger.level, logger.propagate, logger.disabled) for logger in loggers]
    least = logging.root.manager.disable
    yield
    for logger, (level, propagate, disabled) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled
    logging.disable(least)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A fresh, empty workspace; inputs anywhere below the test's folder are allowed."""
    return Workspace.below(tmp_path / "work", input_roots=(str(tmp_path),))


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A Docker engine of the tests' own, or a skip that says why."""
    yield from make_engine(tmp_path_factory)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real data, or a skip that says why."""
    folder = Path(os.environ.get("NNUNET_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set NNUNET_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def hippocampus(test_data: Path) -> Path:
    """200 real MRI cases in Medical Segmentation Decathlon layout."""
    folder = test_data / "Task04_Hippocampus"
    if not folder.is_dir():
        pytest.skip(f"no hippocampus data at {folder}")
    return folder
