"""``python -m nnunet_jobs deidentify IN OUT`` writes de-identified copies of DICOM images."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from nnunet_jobs.cli.command import Command
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.permissions import umask_for
from nnunet_jobs.devices import host

log = logging.getLogger("nnunet_jobs")


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", type=Path, help="folder with DICOM files")
    parser.add_argument("out", metavar="OUT", type=Path, help="new or empty folder")
    parser.add_argument("--private", type=Path, help="folder with the site's key (default: .private in nnUNet_raw)")


def _run(arguments: argparse.Namespace) -> int:
    """Run the command; it succeeds when every image was written."""
    from nnunet_jobs.dicom.export import NOTE, export

    raw = os.environ.get("nnUNet_raw")  # noqa: SIM112  nnU-Net's own name
    folder = arguments.private or (Path(raw) / ".private" if raw else None)
    if folder is None:
        raise ConfigError(field="--private", problem="name the folder of the site's key, or set nnUNet_raw to use its .private")
    with umask_for("private"):  # still images of patients, so the owner decides who else may see them
        done = export(arguments.source, arguments.out, folder.absolute(), threads=max(1, min(int(host.cores()), 16)))
    for number, reason in sorted(done.refused.items()):
        log.warning("file %d %s", number, reason)
    log.info("%d images written, %d files refused, %d files are not DICOM", done.written, len(done.refused), done.other)
    if done.refused:
        log.info("the paths of refused files are in %s", folder / NOTE)
    return Exit.REFUSED if done.refused or not done.written else Exit.DONE


DEIDENTIFY = Command(
    name="deidentify",
    help="copy DICOM images without what identifies patients (the standard's basic profile)",
    declare=_declare,
    run=_run,
)
