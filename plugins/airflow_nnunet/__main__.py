"""``python -m airflow_nnunet doctor|sync-pools``: the commands of ``airflow nnunet`` where the package is a plain folder.

Airflow finds a provider's commands by its installed entry point; a folder on PYTHONPATH has none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Build the same parser that Airflow builds, and run the command."""
    from airflow_nnunet.cli import get_cli_commands

    parser = argparse.ArgumentParser(prog="python -m airflow_nnunet", description="Look after nnU-Net's workspace, pools and jobs.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in get_cli_commands()[0].subcommands:
        sub = commands.add_parser(command.name, help=command.help)
        for argument in command.args:
            argument.add_to_parser(sub)
        sub.set_defaults(func=command.func)
    arguments = parser.parse_args(argv)
    arguments.func(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
