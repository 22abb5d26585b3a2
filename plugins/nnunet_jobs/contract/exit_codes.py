"""The one table of exit codes of the commands that people type, in both wings."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended. The reason of every code but 0 stands on stderr, in a sentence.

    ``python -m nnunet_jobs run|lease|step`` are started by programs and have codes of their own.
    """

    DONE = 0
    """The command did what was asked."""
    FAILED = 1
    """A check found something that keeps jobs from running, or the work was tried and failed."""
    USAGE = 2
    """The command line cannot be parsed; argparse's own code."""
    REFUSED = 3
    """An argument, a setting, a connection, the data or a missing permission makes it impossible."""
    NOT_NOW = 4
    """A service does not answer, is full, or did not end in time: try again later."""
