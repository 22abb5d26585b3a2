"""``python -m nnunet_jobs phantom`` writes a synthetic dataset for trials."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_jobs.cli.command import Command
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--cases", type=int, default=40, help="number of cases (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same voxels (default 0)")


def _run(arguments: argparse.Namespace) -> int:
    from nnunet_jobs.dataset.phantom import write_phantom

    if arguments.cases < 1:
        raise ConfigError(field="--cases", value=arguments.cases, problem="must be 1 or more")
    write_phantom(arguments.out.absolute(), cases=arguments.cases, seed=arguments.seed)
    return Exit.DONE


PHANTOM = Command(name="phantom", help="write an anatomy-like dataset in Medical Segmentation Decathlon layout", declare=_declare, run=_run)
