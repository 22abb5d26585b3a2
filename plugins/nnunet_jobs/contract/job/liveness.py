"""Signs of life that other processes judge: counters that rise, and the boot in which a pid or a lock means anything."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_jobs.contract.storage.files import open_new


def read_counter(path: Path) -> int:
    """Value of a counter file; -1 before the first beat."""
    try:
        return int(path.read_text() or -1)
    except (FileNotFoundError, ValueError):
        return -1


def write_counter(path: Path, value: int) -> None:
    """Set a counter file in place. Fixed width, one ``pwrite``: a reader never sees half a number, and nothing is renamed each second."""
    fd = open_new(path, os.O_WRONLY)
    try:
        os.pwrite(fd, f"{value:020d}\n".encode(), 0)
    finally:
        os.close(fd)


def boot_id() -> str:
    """Identity of this boot of this host: a pid or a lock means nothing after a reboot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
