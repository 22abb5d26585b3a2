"""The program behind :mod:`nnunet_jobs.prediction.reading`: reads a case's images. It may die of them; the job does not."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.dicom import worker


def check(data: dict[str, Any]) -> dict[str, Any]:
    """Look for faults as :func:`~nnunet_jobs.prediction.cases.check_images` does.

    Args:
        data: ``case``, ``images`` (paths), ``file_ending``, ``channels``, and ``reader``: name of nnU-Net's reader to try as well, or None.

    Returns:
        ``problem`` and ``faults``, or None and none.
    """
    from nnunet_jobs.prediction.cases import Case, check_images

    case = Case(case=data["case"], images=tuple(map(Path, data["images"])))
    try:
        check_images(case, file_ending=data["file_ending"], channels=data["channels"])
    except DataError as error:
        return {"problem": str(error), "faults": [asdict(fault) for fault in error.faults]}
    if data["reader"]:
        from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

        recursive_find_reader_writer_by_name(data["reader"])().read_images(data["images"])
    return {"problem": None, "faults": []}


def _find(name: str) -> worker.Task:
    if name not in ("check", "ready"):
        raise ValueError(f"no task {name!r}")
    # nibabel imports pydicom only to look for private headers in NIfTI files; that is three quarters of the start
    sys.modules.setdefault("pydicom", None)  # type: ignore[arg-type]
    import nibabel  # noqa: F401  before the memory limit counts

    import nnunet_jobs.prediction.cases  # noqa: F401

    return check if name == "check" else lambda _data: {}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.umask(0o077)
    sys.exit(worker.main(sys.argv[1:], _find))
