"""What all ``airflow nnunet`` commands share: they end with a code of the one table, and with a sentence instead of a traceback."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable

from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import JobError
from nnunet_jobs.contract.storage.permissions import explain_permission_error

Command = Callable[[argparse.Namespace], int]


def command(function: Command) -> Callable[[argparse.Namespace], None]:
    """A function that returns an exit code as a command: its error becomes a sentence on stderr and a code.

    Args:
        function: Takes the parsed arguments and returns a code of :class:`~nnunet_jobs.contract.exit_codes.Exit`.
    """

    @functools.wraps(function)
    def run(args: argparse.Namespace) -> None:
        # As Airflow's own commands do: connections are then read from Airflow's database too, not from the environment alone.
        os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
        try:
            code = int(function(args))
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = Exit.DONE
        except Exception as error:
            found = _sentence(error, args)
            if found is None:
                raise
            code, text = found
            print(text, file=sys.stderr)
        if code:
            raise SystemExit(code)

    return run


def _sentence(error: Exception, args: argparse.Namespace) -> tuple[Exit, str] | None:
    """Code and text of an error that a person can do something about; None for a fault of ours, whose traceback is wanted."""
    from airflow.sdk.exceptions import AirflowNotFoundException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, JobError):
        return Exit.REFUSED, str(error)
    if isinstance(error, PermissionError):
        return Exit.REFUSED, explain_permission_error(error)
    if isinstance(error, AirflowNotFoundException):
        name = getattr(args, "conn_id", None)
        return Exit.REFUSED, f"--conn-id={name!r}: Airflow has no connection of this name; `airflow connections list` shows those it has"
    if isinstance(error, SQLAlchemyError):
        return Exit.NOT_NOW, f"Airflow's database does not answer ({str(error).splitlines()[0]}); run `airflow db migrate`"
    if isinstance(error, OSError) and error.filename is not None:
        return Exit.REFUSED, f"{error.filename}: {error.strerror}"
    return None
