"""Runs a command of ``python -m nnunet_jobs``, for what needs no job: it is short, and somebody waits for it."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job import packages


def run_jobs_command(python: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one command of ``nnunet_jobs`` with the interpreter that runs the jobs.

    Args:
        python: Interpreter, as in section [nnunet].
        arguments: Arguments of the command.
        options: Options of :func:`subprocess.run`.

    Raises:
        ConfigError: There is no such interpreter.
    """
    try:
        with packages.for_command(python, os.environ) as environment:
            return subprocess.run([python, "-m", "nnunet_jobs", *arguments], text=True, check=False, env=environment, **options)
    except OSError as error:
        raise ConfigError(where="[nnunet]", field="python", value=python, problem=f"cannot run nnunet_jobs: {error}") from error
