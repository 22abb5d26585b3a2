"""Defines the phases of an attempt and the content of ``state.json``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """The phase of an attempt of a job."""

    SUBMITTED = "submitted"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen in this attempt."""
        return self in (Phase.DONE, Phase.FAILED)


class Fenced(Exception):
    """A newer attempt owns the job; the older one must stop without writing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """The content of ``state.json`` at one moment."""

    attempt: int
    phase: Phase
    message: str = ""
    host: str = ""
    pid: int = 0
    boot_id: str = ""
