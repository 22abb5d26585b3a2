"""The program that reads a case's images for :mod:`nnunet_jobs.prediction.reading`. They may crash it, but not the job."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.sandbox import worker


def check(data: dict[str, Any]) -> dict[str, Any]:
    """Find faults as :func:`~nnunet_jobs.prediction.cases.check_images` does.

    Args:
        data: ``case``, ``images`` (paths), ``file_ending``, ``channels``, ``reader``: name of nnU-Net's reader,
            ``try_reader``: whether to try it too, and ``image_bytes``: memory that an image may need, or None.

    Returns:
        ``problem`` and its ``faults``, or None and the warnings; ``needs``: bytes of an image that needs more than allowed.
    """
    from nnunet_jobs.prediction.cases import Case, check_images

    case = Case(case=data["case"], images=tuple(map(Path, data["images"])))
    allowed = data["image_bytes"]

    def reserve(size: int) -> None:
        if allowed is not None and size > allowed:
            raise _TooLarge(size)

    try:
        odd = check_images(case, file_ending=data["file_ending"], channels=data["channels"], reader=data["reader"], reserve=reserve)
    except DataError as error:
        return {"problem": str(error), "faults": [asdict(fault) for fault in error.faults], "needs": None}
    except _TooLarge as error:
        return {"problem": None, "faults": [], "needs": error.size}
    if data["try_reader"]:
        _try_reader(data["reader"], data["images"])
    return {"problem": None, "faults": [asdict(fault) for fault in odd], "needs": None}


class _TooLarge(MemoryError):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


def _try_reader(name: str, images: list[str]) -> None:
    """Test whether nnU-Net's reader survives these files. Errors that it raises are ignored here, since the job reports them."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    reader = recursive_find_reader_writer_by_name(name)()
    try:
        reader.read_images(images)
    except MemoryError:
        raise
    except Exception:
        return


def _find(name: str) -> worker.Task:
    if name != "check":
        raise ValueError(f"no task {name!r}")
    # nibabel imports pydicom only to look for private headers in NIfTI files; that takes three quarters of the start-up time
    sys.modules.setdefault("pydicom", None)  # type: ignore[arg-type]
    import nibabel  # noqa: F401  before the memory limit counts

    import nnunet_jobs.prediction.cases  # noqa: F401

    return check


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(worker.main(sys.argv[1:], _find))
