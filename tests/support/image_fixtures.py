"""The built image of nnU-Net jobs as a fixture, once for all tests of a session.

A test module that wants it says ``pytest_plugins = ["support.image_fixtures"]``; however many do, there is one engine and one build.
``NNUNET_TEST_ENGINE=unix:///...`` names an engine that stays: its layers of the last session make the next build take seconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator

import pytest

from support.engine import BASE, Engine, require_engine
from support.images import Image, build, require_index

_FREE_GB = 15


@pytest.fixture(scope="session")
def nnunet_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """``docker/Dockerfile.nnunet`` built for the CPU as ``make images`` builds it."""
    require_engine()
    root = tmp_path_factory.mktemp("images")
    lent = os.environ.get("NNUNET_TEST_ENGINE")
    free = shutil.disk_usage(root).free / 1e9
    if free < _FREE_GB:
        pytest.skip(f"{free:.0f} GB free at {root}; building the image needs {_FREE_GB}")
    require_index()
    with contextlib.ExitStack() as stack:
        engine = Engine(root)
        if lent:
            engine.url = lent
            stack.push(engine)
        else:
            stack.enter_context(engine)
        if not engine.docker("images", "--quiet", BASE):
            engine.load_base()
        begin = time.perf_counter()
        name = build(engine, "nnunet", "--accelerator", "cpu", "--base", BASE, "--", "--network=host")
        yield Image(engine=engine, name=name, build_s=time.perf_counter() - begin)
