"""One Airflow for all tests of this folder: it starts once, ends with the last of them, and nothing of it is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

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
