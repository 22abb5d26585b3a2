"""Commands that people type, beside the jobs that Airflow runs: ``withdraw``. A command has a step's surroundings without a job."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError, JobError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.permissions import apply_permissions, explain_permission_error
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices import host


def add_withdraw(commands: Any) -> None:
    """The parser of ``withdraw``."""
    parser = commands.add_parser("withdraw", help="take cases out of a dataset, its versions and models, because consent was withdrawn")
    parser.add_argument("dataset", help="id or full name")
    parser.add_argument("--workspace-json", required=True, help="file with the workspace as JSON; '-' reads it from stdin")
    parser.add_argument("--case", action="extend", nargs="+", default=[], metavar="ID", help="case ids")
    parser.add_argument(
        "--group", action="extend", nargs="+", default=[], metavar="PATIENT", help="patients: all of their cases, later ones too"
    )
    parser.add_argument("--reason", help="for the history; one line, never patient data")
    parser.add_argument("--user", help="who asked for it, where that is not this process's user")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument(
        "--restore", action="store_true", help="lift an earlier withdrawal: the next registration may bring the cases again"
    )
    parser.add_argument("--predictions", action="store_true", help="delete the cases' predictions below output_roots too")
    parser.add_argument("--demote", action="store_true", help="a promoted model that was trained on them is no longer the champion")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def withdraw(arguments: argparse.Namespace) -> int:
    """Run ``withdraw``. Returns the exit code: 0, or 3 when it was refused, with the reason on stderr."""
    from nnunet_jobs.contract.storage.withdrawals import WithdrawParams
    from nnunet_jobs.steps.withdraw import run, text

    workspace = read_workspace(arguments.workspace_json)
    apply_permissions(workspace)
    params = WithdrawParams(
        dataset=arguments.dataset,
        cases=arguments.case,
        groups=arguments.group,
        reason=arguments.reason,
        dry_run=arguments.dry_run,
        restore=arguments.restore,
        predictions=arguments.predictions,
        demote=arguments.demote,
    )
    with tempfile.TemporaryDirectory(prefix="nnunet-withdraw-") as folder:
        context = StepContext(workspace=workspace, job=JobDir(folder), cpus=max(1, int(host.cores())), person=arguments.user)
        result = run(params, context)
    print(json.dumps(result, indent=1) if arguments.json else text(result))
    return Exit.DONE


def in_sentences(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command that a person typed; what makes it impossible is a sentence on stderr instead of a traceback."""
    try:
        return command(arguments)
    except JobError as error:
        print(error, file=sys.stderr)
    except PermissionError as error:
        print(explain_permission_error(error), file=sys.stderr)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
    return Exit.REFUSED


def read_workspace(source: str) -> Workspace:
    """The workspace that ``--workspace-json`` names.

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
