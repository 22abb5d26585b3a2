"""Reads and writes heartbeat counters, and identifies the boot in which a pid or a lock is valid."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_jobs.contract.storage.files import open_new, try_lock


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


def is_free(lock: Path) -> bool:
    """Return whether no process holds this kernel lock.

    Raises:
        FileNotFoundError: The job's folder is missing, so its locks cannot be checked.
    """
    for _ in range(2):  # the folder may have been missing for a moment when the lock was not found
        try:
            with open(lock, "rb") as file:
                return try_lock(file.fileno(), shared=True)
        except FileNotFoundError:
            os.stat(lock.parent / "state.json")
    return True
