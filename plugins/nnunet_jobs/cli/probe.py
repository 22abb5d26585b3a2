"""``python -m nnunet_jobs probe`` prints what this host has."""

from __future__ import annotations

import argparse
import json

from nnunet_jobs.cli.command import Command
from nnunet_jobs.contract.exit_codes import Exit


def _declare(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def _run(arguments: argparse.Namespace) -> int:
    from nnunet_jobs.devices.probe import probe

    print(json.dumps(probe(), indent=1))
    return Exit.DONE


PROBE = Command(name="probe", help="print GPUs, cores, memory, limits, compiler and versions as JSON", declare=_declare, run=_run)
