"""Sources that are not plain folders of images become one first: archives are unpacked, DICOM series are converted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.params import RegisterParams
from nnunet_jobs.dataset.sources import recognised
from nnunet_jobs.dataset.volume import open_regular

_LOOKED_AT = 1000


@contextlib.contextmanager
def plain_source(params: RegisterParams, root: Path, context: StepContext, *, dataset: str) -> Iterator[Path]:
    """The folder to list in place of ``root``; removed afterwards where it was only made for this run.

    Args:
        params, context: of the step. root: what ``source`` names, resolved and confined. dataset: full name.
    """
    if params.layout == "dicom" or (params.layout == "auto" and not recognised(params, root) and holds_dicom(root)):
        try:
            from nnunet_jobs.dataset.dicom_source import converted
        except ImportError as error:
            raise ConfigError(
                f"layout={params.layout!r}: reading DICOM needs {error.name}; install airflow-provider-nnunet[dicom]"
            ) from error
        with converted(params, root, context, dataset=dataset) as folder:
            yield folder
        return
    yield root


def holds_dicom(root: Path) -> bool:
    """Whether one of the first files below a folder has the mark of DICOM files: ``DICM`` after 128 bytes."""
    looked = 0
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            looked += 1
            try:
                with open_regular(Path(place) / name) as file:
                    if file.read(132)[128:] == b"DICM":
                        return True
            except OSError:  # a link that leads nowhere, a pipe
                pass
            if looked >= _LOOKED_AT:
                return False
    return False
