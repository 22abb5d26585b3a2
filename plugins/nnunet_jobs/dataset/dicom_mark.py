"""Whether files are DICOM, by a look at their first bytes or their names. Where they are, names of files and folders may be patients'."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from nnunet_jobs.dataset.readers.volume import open_regular

HEAD = 132
"""Bytes of a file that :func:`marked` wants."""
_LOOKED_AT = 1000
_NAMED_LIKE = re.compile(r"(?i)(?:.*\.(?:dcm|dicom|ima)|dicomdir|\d+(?:\.\d+){4,})")


def marked(head: bytes) -> bool:
    """Whether a file begins as DICOM files do: ``DICM`` after 128 bytes."""
    return head[128:HEAD] == b"DICM"


def named_like(name: str) -> bool:
    """Whether a path's last part is what DICOM files are often called, or a UID."""
    return _NAMED_LIKE.fullmatch(PurePosixPath(name).name) is not None


def holds_dicom(root: Path) -> bool:
    """Whether one of the first 1000 files below a folder has the mark of DICOM files."""
    return any(marked(_head(path)) for path in _files(root, _LOOKED_AT))


def may_hold_dicom(root: Path) -> bool:
    """Whether anything below a folder is marked or named as DICOM, however far down. For what must not be said of such a folder."""
    return any(named_like(path.name) or marked(_head(path)) for path in _files(root, None))


def _files(root: Path, limit: int | None) -> Iterator[Path]:
    looked = 0
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            yield Path(place) / name
            looked += 1
            if looked == limit:
                return


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(HEAD) or b""
    except OSError:  # a link that leads nowhere, a pipe
        return b""
