"""The system that runs containers, as a backend sees it: what it is asked, and what a container looks like at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from nnunet_jobs.contract.failure import ConfigError, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec


class Unreachable(Exception):
    """The runtime does not answer, or cannot answer now. This says nothing about any container."""


class RequestRejected(Exception):
    """The runtime refuses the request.

    ``transient`` is true when something is used up that becomes free when others end. ``status`` is the HTTP status, or None.
    """

    def __init__(self, message: str, *, transient: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.status = status


CANNOT_ASK = (Unreachable, RequestRejected, ConfigError)


class ContainerStage(StrEnum):
    """Stage in the life of a container."""

    UNSCHEDULED = "unscheduled"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"
    DOOMED = "doomed"
    """It waits, and always will."""

    @property
    def alive(self) -> bool:
        """True while a runner is, or may still come to be, in the container."""
        return self in (ContainerStage.UNSCHEDULED, ContainerStage.STARTING, ContainerStage.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    """A container as seen at one moment.

    Attributes:
        message: Why the container waits, or how it ended.
        where: Host that the container is on, if it is known.
        leaving: Whether the container was already asked to stop.
        failure_class: Failure class of an end without an outcome in the job's folder.
        exit_code: Exit code of the runner.
        facts: For the record: name, image, digest, exit code, out of memory.
    """

    stage: ContainerStage
    message: str = ""
    where: str = ""
    leaving: bool = False
    failure_class: FailureClass = FailureClass.LOST
    exit_code: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class ContainerRuntime(Protocol):
    """What a backend needs of a container runtime. All methods raise Unreachable, RequestRejected or ConfigError."""

    def name(self, job: JobDir, attempt: int) -> str:
        """Name of the attempt's container."""

    def create(self, job: JobDir, spec: JobSpec, attempt: int) -> None:
        """Create and start the attempt's container, or find that it is there."""

    def look(self, job: JobDir, attempt: int) -> ContainerStatus | None:
        """The attempt's container, None when there is none."""

    def stop(self, job: JobDir, attempt: int, *, grace_s: float) -> None:
        """Ask the container to end, and kill it after the grace period. Returns at once; called again while the container runs."""

    def remove(self, job: JobDir, attempt: int) -> None:
        """Remove the attempt's container, alive or not; done if there is none."""

    def remove_earlier(self, job: JobDir, attempt: int) -> None:
        """Remove what earlier attempts of a job left."""
