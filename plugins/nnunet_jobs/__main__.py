"""Command line of the package that does the work: run a job or its step; check, make or change a dataset; say what this host has."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from nnunet_jobs.cli.command import Command
from nnunet_jobs.cli.deidentify import DEIDENTIFY
from nnunet_jobs.cli.gate import GATE
from nnunet_jobs.cli.jobs import JOBS
from nnunet_jobs.cli.model import MODEL
from nnunet_jobs.cli.phantom import PHANTOM
from nnunet_jobs.cli.probe import PROBE
from nnunet_jobs.cli.serve import SERVE
from nnunet_jobs.cli.validate import VALIDATE
from nnunet_jobs.cli.verify_ledger import VERIFY_LEDGER
from nnunet_jobs.cli.withdraw import WITHDRAW
from nnunet_jobs.contract.commands import run_command

COMMANDS = (*JOBS, PHANTOM, DEIDENTIFY, WITHDRAW, MODEL, SERVE, VALIDATE, VERIFY_LEDGER, GATE, PROBE)


def main(argv: Sequence[str] | None = None, *, module: str = "nnunet_jobs", steps: Callable[..., object] | None = None) -> int:
    """Parse and run one command; returns the exit code.

    A program with steps of its own calls this with its module name (for the runner to start the child with) and a function
    from step name to ``run``.
    """
    arguments = build_parser().parse_args(argv, argparse.Namespace(module=module, steps=steps))
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    command: Command = arguments.command
    return run_command(lambda: command.run(arguments)) if command.typed else command.run(arguments)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m nnunet_jobs", description=__doc__)
    subparsers = parser.add_subparsers(required=True)
    for command in COMMANDS:
        sub = subparsers.add_parser(command.name, help=command.help)
        command.declare(sub)
        sub.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
