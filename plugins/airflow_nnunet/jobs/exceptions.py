"""How a job's failure looks to Airflow: one exception per class, so that a retry policy can decide by class.

Exceptions::

    AirflowException
    └── NnunetJobError          base; ``failure_class`` and ``cancelled`` say what a retry may hope for
        ├── InvalidData         the input is wrong: never retried
        │   └── InstancesRejected   an archive will not take what it was sent
        ├── InvalidConfig       a field or setting is wrong: never retried
        │   └── ArchiveRefused      an archive turns the request down: credentials, address, rights
        ├── JobCancelled        a user stopped the job: never retried
        ├── GpuOutOfMemory      CUDA ran out of memory: two tries
        ├── HostOutOfMemory     the host ran out of memory
        ├── GpuLost             the GPU is gone or quarantined
        ├── JobHung             no progress for too long
        ├── JobLost             the runner or its host vanished
        │   └── ArchiveUnavailable  an archive does not answer, or not for now
        ├── JobInterrupted      stopped by a signal, work is saved
        ├── DiskFull            no space left
        └── JobBug              anything else
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from airflow.sdk.exceptions import AirflowException

from nnunet_jobs.contract.failure import ConfigError, Failure, FailureClass, JobError

_SHOWN_FAULTS = 20


class NnunetJobError(AirflowException):  # type: ignore[misc, unused-ignore]
    """A job failed. The message holds the class, what happened, and the first faults; the whole list is in failure.json.

    ``parts``: of an error about a field, what :attr:`nnunet_jobs.contract.failure.ConfigError.parts` holds; empty for others.
    """

    failure_class: ClassVar[FailureClass] = FailureClass.BUG
    cancelled: ClassVar[bool] = False
    parts: Mapping[str, Any] = MappingProxyType({})


class InvalidData(NnunetJobError):
    """The input is wrong."""

    failure_class = FailureClass.DATA


class InvalidConfig(NnunetJobError):
    """A field or setting is wrong."""

    failure_class = FailureClass.CONFIG


class GpuOutOfMemory(NnunetJobError):
    """CUDA ran out of memory."""

    failure_class = FailureClass.GPU_OOM


class HostOutOfMemory(NnunetJobError):
    """The host, its cgroup or a set limit ran out of memory."""

    failure_class = FailureClass.HOST_OOM


class GpuLost(NnunetJobError):
    """The GPU does not answer any more or is quarantined."""

    failure_class = FailureClass.GPU_LOST


class JobHung(NnunetJobError):
    """No progress for longer than the limit."""

    failure_class = FailureClass.HANG


class JobLost(NnunetJobError):
    """The runner or its host ended without writing an outcome."""

    failure_class = FailureClass.LOST


class JobInterrupted(NnunetJobError):
    """Stopped by a signal, after saving."""

    failure_class = FailureClass.INTERRUPTED


class JobCancelled(JobInterrupted):
    """Stopped because a user said so."""

    cancelled = True


class DiskFull(NnunetJobError):
    """No space or no inodes left where the step writes."""

    failure_class = FailureClass.DISK_FULL


class JobBug(NnunetJobError):
    """Anything that no other class describes."""


class ArchiveRefused(InvalidConfig):
    """An archive turns the request down: wrong credentials, address or rights. ``status`` is its HTTP status, None without one."""

    status: int | None = None


class InstancesRejected(InvalidData):
    """An archive will not take an instance, or what it sent is not what was asked for."""


class ArchiveUnavailable(JobLost):
    """An archive does not answer, or cannot answer now. Finished work is kept; the next try goes on from there.

    ``retry_after_s``: Seconds that the archive asks to wait.
    """

    retry_after_s: float = 0.0


_BY_CLASS: dict[FailureClass, type[NnunetJobError]] = {
    error.failure_class: error
    for error in (
        InvalidData, InvalidConfig, GpuOutOfMemory, HostOutOfMemory, GpuLost, JobHung, JobLost, JobInterrupted, DiskFull, JobBug,
    )
}  # fmt: skip


def to_airflow_error(failure: Failure, *, where: str = "") -> NnunetJobError:
    """The exception of a failure's class.

    Args:
        failure: What the runner wrote.
        where: The job's directory or log, where a person finds the details.
    """
    error_class = JobCancelled if failure.cancelled else _BY_CLASS[failure.failure_class]
    lines = [f"{failure.failure_class}: {failure.message}"]
    if "\n" not in failure.message:  # a message of several lines lists them itself
        untold = [fault for fault in failure.faults if fault.message not in failure.message]
        lines += [f"  {fault}" for fault in untold[:_SHOWN_FAULTS]]
        if len(untold) > _SHOWN_FAULTS:
            lines.append(f"  and {len(untold) - _SHOWN_FAULTS} more")
    if where:
        lines.append(f"Job: {where}")
    error = error_class("\n".join(lines))
    if failure.parts:
        error.parts = failure.parts
    return error


def from_job_error(error: JobError) -> NnunetJobError:
    """The Airflow exception for an error that the contract raised on this side, such as a wrong field."""
    parts = error.parts if isinstance(error, ConfigError) else {}
    return to_airflow_error(Failure(failure_class=error.failure_class, message=str(error), faults=error.faults, parts=parts))
