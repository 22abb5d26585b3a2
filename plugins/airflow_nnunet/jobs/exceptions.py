"""Exceptions for a job's failure, one for each failure class, so that a retry policy can decide by class.

Exceptions::

    AirflowException
    └── NnunetJobError          base; ``failure_class`` and ``cancelled`` decide about a retry
        ├── InvalidData         the input is wrong: never retried
        │   └── InstancesRejected   an archive does not accept instances
        ├── InvalidConfig       a field or setting is wrong: never retried
        │   └── ArchiveRefused      an archive refuses the request: credentials, address, rights
        ├── JobCancelled        a user stopped the job: never retried
        ├── GpuOutOfMemory      CUDA ran out of memory: two tries
        ├── HostOutOfMemory     the host ran out of memory
        ├── GpuLost             the GPU does not answer or is quarantined
        ├── JobHung             no progress for too long
        ├── JobLost             the runner or its host ended without an outcome
        │   └── ArchiveUnavailable  an archive does not answer, or cannot answer now
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
    """A job failed. The message has the class, the error, and the first faults; failure.json has all of them.

    ``parts`` are those of :attr:`nnunet_jobs.contract.failure.ConfigError.parts`, and empty for other errors.
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
    """The GPU no longer answers or is quarantined."""

    failure_class = FailureClass.GPU_LOST


class JobHung(NnunetJobError):
    """The job made no progress for longer than the limit."""

    failure_class = FailureClass.HANG


class JobLost(NnunetJobError):
    """The runner or its host ended without writing an outcome."""

    failure_class = FailureClass.LOST


class JobInterrupted(NnunetJobError):
    """The job was stopped by a signal and has saved its work."""

    failure_class = FailureClass.INTERRUPTED


class JobCancelled(JobInterrupted):
    """A user stopped the job."""

    cancelled = True


class DiskFull(NnunetJobError):
    """The disk that the step writes to has no space or no inodes left."""

    failure_class = FailureClass.DISK_FULL


class JobBug(NnunetJobError):
    """The job failed with an error of no other class."""


class ArchiveRefused(InvalidConfig):
    """An archive refuses the request: wrong credentials, address or rights. ``status`` is the HTTP status or None."""

    status: int | None = None


class InstancesRejected(InvalidData):
    """An archive does not accept an instance, or sent something else than what was requested."""


class ArchiveUnavailable(JobLost):
    """An archive does not answer, or cannot answer now. Finished work is kept, and the next try continues.

    ``retry_after_s`` is the number of seconds that the archive asks to wait.
    """

    retry_after_s: float = 0.0


_BY_CLASS: dict[FailureClass, type[NnunetJobError]] = {
    error.failure_class: error
    for error in (
        InvalidData, InvalidConfig, GpuOutOfMemory, HostOutOfMemory, GpuLost, JobHung, JobLost, JobInterrupted, DiskFull, JobBug,
    )
}  # fmt: skip


def to_airflow_error(failure: Failure, *, where: str = "") -> NnunetJobError:
    """Return the exception of a failure's class.

    Args:
        failure: Failure that the runner wrote.
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
    """Return the Airflow exception for an error that the contract raised on this side, such as a wrong field."""
    parts = error.parts if isinstance(error, ConfigError) else {}
    return to_airflow_error(Failure(failure_class=error.failure_class, message=str(error), faults=error.faults, parts=parts))
