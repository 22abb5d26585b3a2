"""Reads and writes heartbeat counters, and identifies the boot in which a pid or a lock is valid."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_jobs.contract.storage.files import open_new


def read_counter(path: Path) -> int:
    """Return the value of a counter file; -1 before the first heartbeat."""
    try:
        return int(path.read_text() or -1)
    except (FileNotFoundError, ValueError):
        return -1


def write_counter(path: Path, value: int) -> None:
    """Set a counter file in place, by one ``pwrite`` of fixed width, so that readers never see half a number."""
    fd = open_new(path, os.O_WRONLY)
    try:
        os.pwrite(fd, f"{value:020d}\n".encode(), 0)
    finally:
        os.close(fd)


def boot_id() -> str:
    """Return the identity of this boot of this host, since pids and locks are not valid after a reboot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
