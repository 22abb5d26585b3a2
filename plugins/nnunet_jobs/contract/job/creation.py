"""How a job's folder comes to be: whole, by one rename, whoever else makes it at the same time."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.files import temporary_beside, write_record

_ABANDONED_S = 3600.0  # making a folder takes less than a second


def create_folder(path: Path, spec: JobSpec) -> None:
    """Make the folder with the job's specification and its first state, unless another process was faster."""
    _sweep_staging(path)
    staging = temporary_beside(path)
    try:
        staging.mkdir()
        write_record(staging / "spec.json", spec.to_json())
        write_record(staging / "state.json", {"attempt": 0, "phase": Phase.SUBMITTED})
        os.rename(staging, path)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        # Another process may have been faster; its folder is complete, since a rename made it.
        if not (isinstance(error, OSError) and path.exists()):
            raise


def _sweep_staging(path: Path) -> None:
    """Remove temporary folders of submitters of this job that were killed long ago."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left)
