"""One Airflow for all tests of this folder: it starts once, ends with the last of them, and nothing of it is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_nnunet.prediction_api.rest_client import AirflowClient
from devtools.testbed.serving import DATASET, ServerProcess, make_image, make_model
from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from support.predictions_api import DAG, LATE_DAG
from support.stack import Site


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running Airflow and a phantom dataset to work on."""
    root = tmp_path_factory.mktemp("e2e")
    source = root / "incoming" / "phantom"
    command = [sys.executable, "-m", "nnunet_jobs", "phantom", str(source), "--cases", "10", "--seed", "0"]
    subprocess.run(command, check=True, capture_output=True)
    site = Site(root, source)
    with site.stack as stack:
        stack.client.set_pool("gpu", 1)
        stack.client.set_pool("predictions", 4)
        yield site
    assert not stack.processes(), "something of the private Airflow still runs"


@pytest.fixture(scope="package")
def prepared(site: Site) -> Site:
    """The same with the dataset registered and preprocessed."""
    site.prepare()
    return site


def promote_a_model(workspace: Workspace) -> None:
    """A model of random weights, ``m1``, for a dataset of one channel."""
    raw = workspace.raw_dataset(DATASET)
    raw.mkdir(parents=True)
    write_json(raw / "manifest.json", {"schema": 1, "cases": {}, "channel_names": {"0": "MRI"}})
    make_model(workspace, "m1", seed=1)


@pytest.fixture(scope="package")
def promoted(site: Site) -> Site:
    """The site with a promoted model."""
    promote_a_model(site.workspace)
    return site


@pytest.fixture(scope="package")
def served(promoted: Site) -> Site:
    """The same, and a team that has one too."""
    site = promoted
    promote_a_model(Workspace.below(site.root / "late"))
    site.stack.client.set_pool("late", 4)
    for dag_id in (DAG, LATE_DAG):
        site.stack.client.wait_for_dag(dag_id)
    return site


@pytest.fixture
def alice(served: Site) -> Iterator[AirflowClient]:
    client = served.user("alice")
    yield client
    client.close()


@pytest.fixture
def bob(served: Site) -> Iterator[AirflowClient]:
    client = served.user("bob")
    yield client
    client.close()


@pytest.fixture(scope="package")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("image") / "MEIER^ANNA_0000.nii.gz")


@pytest.fixture
def stopped(served: Site, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that takes a connection, and does nothing until it is told to go on."""
    with ServerProcess(served.workspace, tmp_path / "server.log", temporary=tmp_path / "tmp", uds=served.server_socket) as server:
        server.process.send_signal(signal.SIGSTOP)
        try:
            yield server
        finally:
            server.process.send_signal(signal.SIGCONT)
