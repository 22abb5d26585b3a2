"""``python -m airflow_nnunet`` runs the commands of ``airflow nnunet`` if the package is not installed.

Airflow finds a provider's commands by its installed entry point, which a folder on PYTHONPATH does not have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> None:
    """Build the same parser that Airflow builds, and run the command."""
    arguments = build_parser().parse_args(argv)
    arguments.func(arguments)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands, with Airflow's formatter, for which the help texts are written."""
    from airflow.cli.cli_parser import LazyRichHelpFormatter

    from airflow_nnunet.cli.definition import get_cli_commands

    parser = argparse.ArgumentParser(
        prog="python -m airflow_nnunet",
        description="Manage nnU-Net's workspace, pools and jobs.",
        formatter_class=LazyRichHelpFormatter,
    )
    _add(parser, get_cli_commands()[0].subcommands)
    return parser


def _add(parser: argparse.ArgumentParser, commands: Iterable[Any]) -> None:
    """Add commands, and groups with the commands below them."""
    subparsers = parser.add_subparsers(required=True)
    for command in commands:
        sub = subparsers.add_parser(command.name, help=command.help, description=command.help, formatter_class=parser.formatter_class)
        if hasattr(command, "subcommands"):
            _add(sub, command.subcommands)
            continue
        for argument in command.args:
            argument.add_to_parser(sub)
        sub.set_defaults(func=command.func)


if __name__ == "__main__":
    main(sys.argv[1:])
