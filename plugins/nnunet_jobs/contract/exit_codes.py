"""Defines all exit codes: of the commands that people type, in both packages, and of those that programs start."""

from __future__ import annotations

from enum import IntEnum

from nnunet_jobs.contract.failure import FailureClass


class Exit(IntEnum):
    """How a command ended. The reason of every code except 0 is on stderr, in a sentence.

    ``python -m nnunet_jobs run|lease|step`` are started by programs and have codes of their own: :class:`RunnerExit` and
    :data:`STEP_EXITS`.
    """

    DONE = 0
    """The command succeeded."""
    FAILED = 1
    """A check found something that prevents jobs from running, or the work failed."""
    USAGE = 2
    """The command line cannot be parsed (argparse's own code), or ``validate`` cannot look for the dataset."""
    REFUSED = 3
    """An argument, a setting, a connection, the data or a missing permission makes it impossible."""
    NOT_NOW = 4
    """A service does not answer, is full, or did not end in time; try again later."""


class RunnerExit(IntEnum):
    """How ``run`` and ``lease`` ended. The outcome itself is in the job's folder."""

    DONE = 0
    """The attempt is done, or another runner continues it."""
    FAILED = 1
    """The attempt failed, and its failure is recorded."""
    FENCED = 3
    """A newer attempt owns the job."""
    REFUSED = 4
    """This process is not the runner of the attempt, or was stopped before it became the runner."""
    NO_FOLDER = 5
    """The job's folder does not exist, or is not writable."""


STEP_EXITS = {failure_class: 64 + number for number, failure_class in enumerate(FailureClass)}
"""Exit code of ``step`` for each class of failure, for a step that cannot write its report."""
