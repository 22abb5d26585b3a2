"""Command line of the work's wing: run a job or its step; check, make or change a dataset; say what this host has."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nnunet_jobs.cli import commands, serve, validate
from nnunet_jobs.cli.commands import in_sentences
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.files import open_new


def main(argv: Sequence[str] | None = None, *, module: str = "nnunet_jobs", steps: Callable[..., object] | None = None) -> int:
    """Parse and run one command; returns the exit code.

    A program with steps of its own calls this with its module name (for the runner to start the child with) and a function
    from step name to ``run``.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    if arguments.command in ("run", "lease"):
        from nnunet_jobs.runner.attempt import EXIT_NO_FOLDER

        job = JobDir(arguments.job.absolute())
        if arguments.own_log:
            try:
                _speak_to(job.log)
            except OSError as error:
                print(f"{job.log}: {error.strerror}; this container does not see the job's folder, or may not write there", file=sys.stderr)
                return EXIT_NO_FOLDER
        if arguments.command == "run":
            return _run(arguments, job, module)
        from nnunet_jobs.runner.handover import Grantor

        return Grantor(job, arguments.attempt, handover_s=arguments.handover_s).run()
    if arguments.command == "step":
        from nnunet_jobs.runner import child

        return child.main(JobDir(arguments.job), arguments.attempt, steps=steps or child.load_step)  # type: ignore[arg-type]
    return in_sentences(_typed, arguments)


def _typed(arguments: argparse.Namespace) -> int:
    """The commands that people type."""
    if arguments.command == "validate":
        return validate.run(arguments)
    if arguments.command == "phantom":
        from nnunet_jobs.dataset.phantom import write_phantom

        if arguments.cases < 1:
            raise ConfigError(field="--cases", value=arguments.cases, problem="must be 1 or more")
        write_phantom(arguments.out.absolute(), cases=arguments.cases, seed=arguments.seed)
        return Exit.DONE
    if arguments.command == "deidentify":
        from nnunet_jobs.cli import deidentify

        return deidentify.main(arguments.source, arguments.out, arguments.private)
    if arguments.command == "withdraw":
        return commands.withdraw(arguments)
    if arguments.command == "serve":
        return serve.serve(arguments)
    from nnunet_jobs.devices.probe import probe

    print(json.dumps(probe(), indent=1))
    return Exit.DONE


def _run(arguments: argparse.Namespace, job: JobDir, module: str) -> int:
    from nnunet_jobs.runner.runner import Runner

    if arguments.ready_fd is not None:
        os.set_inheritable(arguments.ready_fd, False)
    if arguments.detach:
        # The caller waits for this process only; the runner belongs to init, so that it can become nobody's zombie.
        if os.fork():
            os._exit(0)
        os.setsid()
    runner = Runner(job, arguments.attempt, module=module, ready_fd=arguments.ready_fd)
    return runner.run_granted() if arguments.grant else runner.run()


def _speak_to(log: Path) -> None:
    """Send what this process and its children say to the job's log, where everybody looks for it."""
    fd = open_new(log, os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(fd, standard)
    os.close(fd)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nnunet_jobs", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("run", "run one attempt of a job"),
        ("lease", "lease GPUs for an attempt and hand them to the runner in the attempt's own container"),
        ("step", "run a job's step; started by the runner only"),
    ):
        command = subparsers.add_parser(name, help=text)
        command.add_argument("job", type=Path, help="job directory")
        command.add_argument("--attempt", type=int, required=True, help="number of the attempt, as begun by submit")
        if name in ("run", "lease"):
            command.add_argument("--own-log", action="store_true", help="write to the job's log instead of stdout and stderr")
        if name == "run":
            command.add_argument("--detach", action="store_true", help="return at once, the runner goes on in the background")
            command.add_argument("--ready-fd", type=int, help="file descriptor to write to once the attempt is on record")
            command.add_argument("--grant", action="store_true", help="adopt the lease of grant.json, which the command lease took")
        if name == "lease":
            command.add_argument(
                "--handover-s", type=float, default=600.0, help="seconds until a lease that nobody adopts is given back (default 600)"
            )
    phantom = subparsers.add_parser("phantom", help="write an anatomy-like dataset in Medical Segmentation Decathlon layout")
    phantom.add_argument("out", type=Path, help="folder to make")
    phantom.add_argument("--cases", type=int, default=40, help="number of cases (default 40)")
    phantom.add_argument("--seed", type=int, default=0, help="same seed, same voxels (default 0)")
    deidentify = subparsers.add_parser(
        "deidentify", help="copy DICOM images without what identifies patients (the standard's basic profile)"
    )
    deidentify.add_argument("source", metavar="IN", type=Path, help="folder with DICOM files")
    deidentify.add_argument("out", metavar="OUT", type=Path, help="new or empty folder")
    deidentify.add_argument("--private", type=Path, help="folder with the site's key (default: .private in nnUNet_raw)")
    commands.add_withdraw(subparsers)
    serve.add_serve(subparsers)
    validate.add_arguments(subparsers.add_parser("validate", help="check a dataset: every fault of every case, nothing is written"))
    subparsers.add_parser("probe", help="print GPUs, cores, memory, limits, compiler and versions as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
