"""``python -m nnunet_jobs run|lease|step`` run a job's attempt. Backends and the runner start them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nnunet_jobs.cli.command import Command
from nnunet_jobs.contract.exit_codes import RunnerExit
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.files import open_new


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, help="job directory")
    parser.add_argument("--attempt", type=int, required=True, help="number of the attempt, as begun by submit")


def _declare_runner(parser: argparse.ArgumentParser) -> None:
    _declare(parser)
    parser.add_argument("--own-log", action="store_true", help="write to the job's log instead of stdout and stderr")


def _declare_run(parser: argparse.ArgumentParser) -> None:
    _declare_runner(parser)
    parser.add_argument("--detach", action="store_true", help="return at once; the runner continues in the background")
    parser.add_argument("--ready-fd", type=int, help="file descriptor to write to once the attempt is recorded")
    parser.add_argument("--grant", action="store_true", help="adopt the lease of grant.json, which the command lease took")


def _declare_lease(parser: argparse.ArgumentParser) -> None:
    _declare_runner(parser)
    help_text = "seconds until a lease that is not adopted is released (default 600)"
    parser.add_argument("--handover-s", type=float, default=600.0, help=help_text)


def _run(arguments: argparse.Namespace) -> int:
    job = JobDir(arguments.job.absolute())
    if arguments.own_log and not _speaks_to(job.log):
        return RunnerExit.NO_FOLDER
    from nnunet_jobs.runner.runner import Runner

    if arguments.ready_fd is not None:
        os.set_inheritable(arguments.ready_fd, False)
    if arguments.detach:
        # The caller waits for this process only; the runner belongs to init, so that it can become nobody's zombie.
        if os.fork():
            os._exit(0)
        os.setsid()
    runner = Runner(job, arguments.attempt, module=arguments.module, ready_fd=arguments.ready_fd)
    return runner.run_granted() if arguments.grant else runner.run()


def _lease(arguments: argparse.Namespace) -> int:
    job = JobDir(arguments.job.absolute())
    if arguments.own_log and not _speaks_to(job.log):
        return RunnerExit.NO_FOLDER
    from nnunet_jobs.runner.handover import Grantor

    return Grantor(job, arguments.attempt, handover_s=arguments.handover_s).run()


def _step(arguments: argparse.Namespace) -> int:
    from nnunet_jobs.runner import child

    return child.main(JobDir(arguments.job), arguments.attempt, steps=arguments.steps or child.load_step)


def _speaks_to(log: Path) -> bool:
    """Redirect the output of this process and its children to the job's log. Returns False if it cannot be written."""
    try:
        fd = open_new(log, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
        print(f"{log}: {error.strerror}; this container does not see the job's folder, or may not write there", file=sys.stderr)
        return False
    for standard in (1, 2):
        os.dup2(fd, standard)
    os.close(fd)
    return True


JOBS = (
    Command(name="run", help="run one attempt of a job", declare=_declare_run, run=_run, typed=False),
    Command(
        name="lease",
        help="lease GPUs for an attempt and hand them to the runner in the attempt's own container",
        declare=_declare_lease,
        run=_lease,
        typed=False,
    ),
    Command(name="step", help="run a job's step; started by the runner only", declare=_declare, run=_step, typed=False),
)
