"""``python -m nnunet_jobs validate`` as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "nnunet_jobs", "validate", *map(str, arguments)]


def environment(scratch: Path | None = None) -> dict[str, str]:
    """Of this process, with its modules; ``scratch`` is where temporary folders go."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **({"TMPDIR": str(scratch)} if scratch else {})}


def validate(*arguments: object, scratch: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=environment(scratch), capture_output=True, text=True, timeout=120, check=False)
