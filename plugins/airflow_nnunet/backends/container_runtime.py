"""Defines the interface to a system that runs containers, and the status of a container."""

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

    ``transient`` means that a resource is used up and becomes free when others end. ``status`` is the HTTP status, or
    None.
    """

    def __init__(self, message: str, *, transient: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.status = status


CANNOT_ASK = (Unreachable, RequestRejected, ConfigError)


class ContainerStage(StrEnum):
    """Names the stages of a container."""

    UNSCHEDULED = "unscheduled"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"
    DOOMED = "doomed"
    """The container waits for something that will never happen."""

    @property
    def alive(self) -> bool:
        """Return whether a runner is in the container or may still start in it."""
        return self in (ContainerStage.UNSCHEDULED, ContainerStage.STARTING, ContainerStage.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    """Describes a container at one moment.

    Attributes:
        message: Why the container waits, or how it ended.
        where: Host that the container is on, if it is known.
        leaving: Whether the container was already asked to stop.
        failure_class: Failure class of an end without an outcome in the job's folder.
        exit_code: Exit code of the runner.
        facts: Facts to record: name, image, digest, exit code, out of memory.
    """

    stage: ContainerStage
    message: str = ""
    where: str = ""
    leaving: bool = False
    failure_class: FailureClass = FailureClass.LOST
    exit_code: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class ContainerRuntime(Protocol):
    """Defines what a backend needs of a container runtime. Methods raise Unreachable, RequestRejected or ConfigError."""

    def name(self, job: JobDir, attempt: int) -> str:
        """Return the name of the attempt's container."""

    def create(self, job: JobDir, spec: JobSpec, attempt: int) -> None:
        """Create and start the attempt's container, or find that it exists."""

    def look(self, job: JobDir, attempt: int) -> ContainerStatus | None:
        """Return the attempt's container, or None."""

    def stop(self, job: JobDir, attempt: int, *, grace_s: float) -> None:
        """Ask the container to end, and kill it after the grace period. Returns at once and may be called again."""

    def remove(self, job: JobDir, attempt: int) -> None:
        """Remove the attempt's container, even if it runs. Do nothing if there is none."""

    def remove_earlier(self, job: JobDir, attempt: int) -> None:
        """Remove containers of earlier attempts of a job."""
