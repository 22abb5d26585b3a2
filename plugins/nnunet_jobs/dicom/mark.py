"""Recognises DICOM files by their first bytes or names. Names of such files and folders may contain patients' names."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from nnunet_jobs.contract.storage.files import open_regular

HEAD = 512
"""Bytes of a file that :func:`marked` and :func:`begins_data_set` need."""
_PREAMBLE = 128
_LOOKED_AT = 1000
_NAMED_LIKE = re.compile(r"(?i)(?:.*\.(?:dcm|dicom|ima)(?:\.gz)?|dicomdir|\d+(?:\.\d+){4,})")
_VALUES = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UC UI UL UR US UT OB OD OF OL OV OW SQ SV UN UV".split())
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # two reserved bytes, then four of length
_FIRST_GROUPS = (0x0002, 0x0008)  # file meta information, or the data set itself
_LONGEST_FIRST = 1024  # bytes of one of the first elements of a data set
_ELEMENTS = 3


def marked(head: bytes) -> bool:
    """Whether a file begins as DICOM files do: ``DICM`` after 128 bytes."""
    return head[_PREAMBLE : _PREAMBLE + 4] == b"DICM"


def begins_data_set(head: bytes) -> bool:
    """Whether bytes begin as a DICOM data set without preamble and mark, as old archives and planning systems write it.

    The first three elements must be well-formed, in ascending order, and of the groups that every data set begins with.
    """
    return any(_elements(head, explicit=explicit, order=order) for explicit, order in ((True, "<"), (True, ">"), (False, "<")))


def damaged_mark(head: bytes) -> bool:
    """Whether there is a DICOM data set after a preamble whose mark is missing or wrong. Such files are not read."""
    return not like_dicom(head) and any(begins_data_set(head[at:]) for at in (_PREAMBLE, _PREAMBLE + 4))


def like_dicom(head: bytes) -> bool:
    """Whether a file's first bytes are those of DICOM, with the mark or without."""
    return marked(head) or begins_data_set(head)


def _elements(head: bytes, *, explicit: bool, order: str) -> bool:
    at, before = 0, (0, -1)
    for _ in range(_ELEMENTS):
        if len(head) < at + 12:
            return False
        tag = struct.unpack_from(f"{order}HH", head, at)
        if tag[0] not in _FIRST_GROUPS or tag <= before:
            return False
        kind = head[at + 4 : at + 6]
        if explicit and kind not in _VALUES:
            return False
        if not explicit:
            start, length = at + 8, struct.unpack_from("<I", head, at + 4)[0]
        elif kind in _LONG:
            start, length = at + 12, struct.unpack_from(f"{order}I", head, at + 8)[0]
        else:
            start, length = at + 8, struct.unpack_from(f"{order}H", head, at + 6)[0]
        if length > _LONGEST_FIRST:
            return False
        before, at = tag, start + length
        if at >= len(head) == HEAD:
            return True  # the rest is beyond the bytes that were read
    return True


def named_like(name: str) -> bool:
    """Whether a path's last part is a usual name of DICOM files, or a UID."""
    return _NAMED_LIKE.fullmatch(PurePosixPath(name).name) is not None


def holds_dicom(root: Path) -> bool:
    """Whether one of the first 1000 files below a folder begins as DICOM files do, with or without mark."""
    return any(like_dicom(_head(path)) for path in _files(root, _LOOKED_AT))


def may_hold_dicom(root: Path) -> bool:
    """Whether any file below a folder, at any depth, begins or is named as DICOM, so that messages must not name its files."""
    return any(named_like(path.name) or like_dicom(_head(path)) for path in _files(root, None))


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
    except OSError:  # a broken link, a pipe
        return b""
