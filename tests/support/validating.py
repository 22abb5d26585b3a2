"""``python -m nnunet_jobs validate`` as a person runs it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.__main__ import build_parser
from nnunet_jobs.cli.validate import VALIDATE
from nnunet_jobs.contract.exit_codes import Exit


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "nnunet_jobs", "validate", *map(str, arguments)]


def environment(scratch: Path | None = None) -> dict[str, str]:
    """Of this process, with its modules; ``scratch`` is where temporary folders go."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **({"TMPDIR": str(scratch)} if scratch else {})}


def validate(*arguments: object, scratch: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=environment(scratch), capture_output=True, text=True, timeout=120, check=False)


def report_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit code and the report of ``validate --json``, in this process: what stdout holds must be that report and nothing else."""
    capsys.readouterr()
    logger = logging.getLogger("nnunet_jobs")
    level = logger.level
    try:
        status = VALIDATE.run(build_parser().parse_args(["validate", *map(str, arguments), "--json", "--processes", "1"]))
    finally:
        logger.setLevel(level)  # the command sets it for its process
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(report) == {"ok", "cases", "faults"}
    assert report["ok"] == (status == Exit.DONE)
    return status, report
