"""``python -m nnunet_jobs verify-ledger``: checks ledgers with Python's standard library alone."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from nnunet_jobs.cli.command import Command
from nnunet_jobs.contract.exit_codes import Exit


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="a ledger (.jsonl), a folder .ledger, or nnUNet_results")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run(arguments: argparse.Namespace) -> int:
    from nnunet_jobs.registry.verification import verify

    verdicts = verify(arguments.path.absolute())
    if arguments.json:
        print(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))
    else:
        for verdict in verdicts:
            state = "NOT as it was written" if verdict.faults else "whole"
            print(f"{verdict.dataset}: {verdict.entries} entries, {verdict.files} listed files compared: {state}")
            for sentence in (*verdict.faults, *verdict.notes):
                print(f"  {sentence}")
    return Exit.FAILED if any(verdict.faults for verdict in verdicts) else Exit.DONE


VERIFY_LEDGER = Command(
    name="verify-ledger",
    help="check that no line of a ledger, and no file that it lists, was changed",
    declare=_declare,
    run=_run,
)
