"""Base of all ``airflow nnunet`` commands, which end with a documented exit code, and a message instead of a traceback."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable

from nnunet_jobs.contract.commands import Sentence, run_command
from nnunet_jobs.contract.exit_codes import Exit

Command = Callable[[argparse.Namespace], int]


def command(function: Command) -> Callable[[argparse.Namespace], None]:
    """Make a command of a function that returns an exit code. Its errors become a message on stderr and a code.

    Args:
        function: Function that takes the parsed arguments and returns a code of
            :class:`~nnunet_jobs.contract.exit_codes.Exit`.
    """

    @functools.wraps(function)
    def run(args: argparse.Namespace) -> None:
        # As in Airflow's own commands, connections are then read from Airflow's database too, not only from the
        # environment.
        os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
        if code := run_command(lambda: function(args), foreign=lambda error: _of_airflow(error, args)):
            raise SystemExit(int(code))

    return run


def _of_airflow(error: Exception, args: argparse.Namespace) -> Sentence | None:
    """Return the code and message for an error of Airflow that a person can fix."""
    from airflow.sdk.exceptions import AirflowNotFoundException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, AirflowNotFoundException):
        name = getattr(args, "conn_id", None)
        return Exit.REFUSED, f"--conn-id={name!r}: Airflow has no connection of this name; `airflow connections list` shows those it has"
    if isinstance(error, SQLAlchemyError):
        return Exit.NOT_NOW, f"Airflow's database does not answer ({str(error).splitlines()[0]}); run `airflow db migrate`"
    return None
