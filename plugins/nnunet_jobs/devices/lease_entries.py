"""Reads and writes entries of the lease ledger: small files that their holders lock while they run; used under the ledger's mutex."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import open_new, try_lock

_PAGE = 4096


class Unreadable(Exception):
    """The entry of a live holder cannot be read, so that its devices are not known."""


def live_entries(folder: Path) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Yield entries with a live holder, by number, with None for one that cannot be read. Those without a holder are removed."""
    for path in sorted(folder.iterdir()):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if try_lock(fd, shared=True):
                path.unlink(missing_ok=True)
            else:
                yield path, content(fd)
        finally:
            os.close(fd)


def is_full(error: OSError) -> bool:
    """Whether an error is that of a disk without space or inodes left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def new_entry(path: Path, data: Mapping[str, Any]) -> int:
    """Make a new, locked entry and return its descriptor. If writing fails it is removed, since an empty locked entry would block all."""
    fd = open_new(path, os.O_RDWR | os.O_EXCL)
    try:
        try_lock(fd)
        rewrite(fd, data)
    except BaseException:
        path.unlink(missing_ok=True)
        os.close(fd)
        raise
    return fd


def content(fd: int) -> dict[str, Any] | None:
    """Return the content of an entry; None if it cannot be read."""
    try:
        data = json.loads(os.pread(fd, _PAGE, 0))
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def change(path: Path, **values: Any) -> None:
    """Change values in a live entry; nothing if its owner has just left."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if (data := content(fd)) is not None:
                rewrite(fd, {**data, **values})
        finally:
            os.close(fd)


def rewrite(fd: int, data: Mapping[str, Any]) -> None:
    """Replace a small file's content in place, since its lock belongs to this file and a rename would lose it.

    It is one write of one padded page, so that a killed writer leaves the old content or the new one.
    """
    text = json.dumps(data).encode().ljust(_PAGE - 1) + b"\n"
    if len(text) > _PAGE:
        raise ValueError(f"ledger entry of {len(text)} bytes; at most {_PAGE} fit")
    if os.pwrite(fd, text, 0) < len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
