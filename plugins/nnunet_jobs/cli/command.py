"""Defines a command of ``python -m nnunet_jobs``, and what several of them need."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        name: Name of the command.
        help: Description for the list of commands.
        declare: Adds the arguments to the command's parser.
        run: Runs it and returns the exit code; what only this command needs is imported in there.
        typed: Whether people type it; the others are started by programs.
    """

    name: str
    help: str
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    typed: bool = True


def read_workspace(source: str) -> Workspace:
    """Read the workspace that ``--workspace-json`` names.

    Args:
        source: A file, or ``-`` for stdin.

    Raises:
        ConfigError: It holds no workspace.
    """
    data = sys.stdin.read() if source == "-" else Path(source).read_text()
    try:
        return Workspace.from_json(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(field="--workspace-json", value=source, problem=f"must hold a workspace as JSON ({error})") from error
