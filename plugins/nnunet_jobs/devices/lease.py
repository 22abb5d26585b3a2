"""A lease on devices, as its holder has it and as others read it."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A live lease as read from the ledger. ``pid`` and ``sessions`` are valid in ``pid_namespace`` only."""

    number: int
    device: str
    memory_mib: int | None
    owner: str
    sessions: tuple[int, ...]
    pid: int
    pid_namespace: int
    follows: int | None
    team: str = ""


@dataclass(slots=True, kw_only=True)
class Lease:
    """Leased devices. The files stay locked until the last process that inherited ``fds`` ends."""

    devices: tuple[str, ...]
    numbers: tuple[int, ...]
    fds: tuple[int, ...]

    def release(self) -> None:
        """Close our descriptors; processes that inherited them keep the lease."""
        for fd in self.fds:
            os.close(fd)
        self.fds = ()
