"""``python -m nnunet_jobs withdraw`` runs a step for a person at a terminal, without a job."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import fields

from nnunet_jobs.cli.command import Command, read_workspace
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.permissions import apply_permissions
from nnunet_jobs.devices import host


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="id or full name")
    parser.add_argument("--workspace-json", required=True, help="file with the workspace as JSON; '-' reads it from stdin")
    parser.add_argument("--case", dest="cases", action="extend", nargs="+", default=[], metavar="ID", help="case ids")
    parser.add_argument(
        "--group",
        dest="groups",
        action="extend",
        nargs="+",
        default=[],
        metavar="PATIENT",
        help="patients, whose present and later cases are all withdrawn",
    )
    parser.add_argument("--reason", help="for the history; one line, never patient data")
    parser.add_argument("--user", help="the user who requested it, if that is not this process's user")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--restore", action="store_true", help="lift an earlier withdrawal: the next registration may bring the cases again"
    )
    parser.add_argument("--predictions", action="store_true", help="delete the cases' predictions below output_roots too")
    parser.add_argument("--demote", action="store_true", help="demote the champion if it was trained on the cases")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run(arguments: argparse.Namespace) -> int:
    from nnunet_jobs.contract.storage.withdrawals import WithdrawParams
    from nnunet_jobs.steps.withdraw import run, text

    workspace = read_workspace(arguments.workspace_json)
    apply_permissions(workspace)
    params = WithdrawParams(**{item.name: getattr(arguments, item.name) for item in fields(WithdrawParams)})
    with tempfile.TemporaryDirectory(prefix="nnunet-withdraw-") as folder:
        context = StepContext(workspace=workspace, job=JobDir(folder), cpus=max(1, int(host.cores())), person=arguments.user)
        result = run(params, context)
    print(json.dumps(result, indent=1) if arguments.json else text(result))
    return Exit.DONE


WITHDRAW = Command(
    name="withdraw",
    help="remove cases from a dataset, its versions and models, because consent was withdrawn",
    declare=_declare,
    run=_run,
)
