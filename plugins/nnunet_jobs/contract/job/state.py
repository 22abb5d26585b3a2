"""Where a job stands: the phases of an attempt and what ``state.json`` says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where an attempt of a job stands."""

    SUBMITTED = "submitted"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """True once nothing more will happen in this attempt."""
        return self in (Phase.DONE, Phase.FAILED)


class Fenced(Exception):
    """A newer attempt owns the job; the older one must stop without writing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """What ``state.json`` says, at one moment."""

    attempt: int
    phase: Phase
    message: str = ""
    host: str = ""
    pid: int = 0
    boot_id: str = ""
