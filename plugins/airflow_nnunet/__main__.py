"""``python -m airflow_nnunet init|doctor|sync-pools|usage|predict|dataset``: ``airflow nnunet`` where the package is a plain folder.

Airflow finds a provider's commands by its installed entry point; a folder on PYTHONPATH has none.
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
    """The parser of all commands, with the formatter of Airflow's own, for which the help texts are written."""
    from airflow.cli.cli_parser import LazyRichHelpFormatter

    from airflow_nnunet.cli.definition import get_cli_commands

    parser = argparse.ArgumentParser(
        prog="python -m airflow_nnunet",
        description="Look after nnU-Net's workspace, pools and jobs.",
        formatter_class=LazyRichHelpFormatter,
    )
    _add(parser, get_cli_commands()[0].subcommands)
    return parser


def _add(parser: argparse.ArgumentParser, commands: Iterable[Any]) -> None:
    """Commands, and groups of commands below them."""
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
