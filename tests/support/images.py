"""The image of nnU-Net jobs, really built on a base from Debian's packages. Fixture ``nnunet_image`` is in image_fixtures.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.engine import PROJECT, Engine

_BUILD_S = 1200


@dataclass(frozen=True, kw_only=True)
class Image:
    """A built image and the engine that has it. ``build_s`` is the time its build took."""

    engine: Engine
    name: str
    build_s: float

    def run(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """Output of a command in a container as a job would have it: no network, read-only, a user whom the image does not know."""
        least = ("--read-only", "--network=none", "--user=12345:12345", "--cap-drop=ALL", "--tmpfs=/tmp:exec")
        return self.engine.docker("run", "--rm", "--init", *least, *options, self.name, *command)

    def inspect(self) -> dict[str, Any]:
        """What the engine knows about it."""
        return self.engine.inspect(self.name)


def build(engine: Engine, *arguments: str, project: Path = PROJECT) -> str:
    """Run ``docker/build.py`` of a project folder with an engine; returns the built image's name."""
    done = subprocess.run(
        [sys.executable, str(project / "docker" / "build.py"), *arguments],
        env={**os.environ, "DOCKER_HOST": engine.url, "DOCKER_CONFIG": str(engine.root), "DOCKER_BUILDKIT": "0"},
        capture_output=True,
        text=True,
        timeout=_BUILD_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return re.findall(r"^built (\S+)$", done.stdout, re.MULTILINE)[-1]


def require_index() -> None:
    """Skip where no package index answers."""
    asked = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-cache", "--no-deps", "-"],
        input="nnunetv2\n", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if asked.returncode:
        pytest.skip("no package index can be reached to build the image from")
