"""Runs the commands that people type, in both packages: each ends with an exit code and a sentence instead of a traceback."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import JobError
from nnunet_jobs.contract.storage.permissions import explain_permission_error

Sentence = tuple[Exit, str]


def run_command(command: Callable[[], int], *, foreign: Callable[[Exception], Sentence | None] = lambda error: None) -> int:
    """Run a command and return its exit code. An error that makes it impossible is printed as a sentence on stderr.

    Args:
        command: Returns a code of :class:`~nnunet_jobs.contract.exit_codes.Exit`.
        foreign: Returns code and message of an error of another package; None for an error that needs a traceback.
    """
    code: int = Exit.DONE
    try:
        code = command()
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            # As after `| head`. Python would try to write the rest again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return code
        found = _sentence(error) or foreign(error)
        if found is None:
            raise
        code, text = found
        print(text, file=sys.stderr)
    return code


def _sentence(error: Exception) -> Sentence | None:
    if isinstance(error, JobError):
        return Exit.REFUSED, str(error)
    if isinstance(error, PermissionError):
        return Exit.REFUSED, explain_permission_error(error)
    if isinstance(error, OSError) and error.filename is not None:
        return Exit.REFUSED, f"{error.filename}: {error.strerror}"
    return None


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has left; another broken pipe is a fault."""
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in stdout.poll(0))
