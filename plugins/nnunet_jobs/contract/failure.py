"""Defines the failure classes that the runner, the operators, the retry policy and the documentation share.

Exceptions::

    JobError                  base; ``failure_class`` says whether a retry may help
    ├── DataError             the input is wrong, carries the list of faults
    ├── ConfigError           a field, a root or a version is wrong
    ├── GpuOutOfMemory        CUDA ran out of memory
    ├── HostOutOfMemory       the host or its cgroup ran out of memory
    ├── GpuLost               the GPU does not respond or is quarantined
    ├── Hang                  no progress for too long
    ├── Lost                  the runner or its host ended without an outcome
    ├── Interrupted           stopped on purpose (a user, a signal); work is saved
    ├── DiskFull              no space or no inodes left
    └── Bug                   anything else
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self, overload

# The parts of a ConfigError, as keys of failure.json.
PARTS = ("where", "field", "value", "problem", "fix")


class FailureClass(StrEnum):
    """Kinds of failures, by whether a retry may help."""

    DATA = "data"
    CONFIG = "config"
    GPU_OOM = "gpu_oom"
    HOST_OOM = "host_oom"
    GPU_LOST = "gpu_lost"
    HANG = "hang"
    LOST = "lost"
    INTERRUPTED = "interrupted"
    DISK_FULL = "disk_full"
    BUG = "bug"

    @property
    def retryable(self) -> bool:
        """Whether a retry may help. False for ``data`` and ``config``: the same input fails in the same way again."""
        return self not in (FailureClass.DATA, FailureClass.CONFIG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One problem of one dataset, case or file."""

    code: str
    message: str
    severity: str = "error"
    case: str | None = None
    file: str | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fault:
        """Read a fault as ``asdict`` gives it. Keys that this version does not know are ignored."""
        return cls(**{item.name: data[item.name] for item in fields(cls) if item.name in data})

    def __str__(self) -> str:
        where = " ".join(part for part in (self.case, self.file) if part)
        return f"{self.code}{f' [{where}]' if where else ''}: {self.message}"


class JobError(Exception):
    """Base of all failures that a step raises on purpose."""

    failure_class: FailureClass = FailureClass.BUG

    def __init__(self, message: str, *, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class DataError(JobError):
    """The input is wrong. ``faults`` names every case and file."""

    failure_class = FailureClass.DATA


class ConfigError(JobError):
    """A field or setting is wrong. The message is ``where field=value: problem; fix``, or ``field is missing; fix``.

    Parts that are not given are left out. An error without a field has only a message. Code must read a part from its
    attribute, never from the message.

    Args:
        field: Name of the field, as the user who set it knows it.
        value: Its value; not given if it is missing or secret.
        problem: What is wrong with it.
        fix: How to fix it, if that does not follow from the problem.
        where: What the field belongs to, such as ``"[nnunet]"`` or ``"train:"``.
    """

    failure_class = FailureClass.CONFIG
    where: str | None = None
    field: str | None = None
    value: Any = None
    problem: str | None = None
    fix: str | None = None

    @overload
    def __init__(self, message: str, *, faults: Sequence[Fault] = ()) -> None: ...

    @overload
    def __init__(
        self, *, field: str, value: object = ..., problem: str, fix: str | None = None, where: str | None = None,
        faults: Sequence[Fault] = (),
    ) -> None: ...  # fmt: skip

    def __init__(self, message: str | None = None, *, faults: Sequence[Fault] = (), **parts: Any) -> None:
        given = {name: part for name, part in parts.items() if name == "value" or part is not None}
        super().__init__(_assembled(**given) if message is None else message, faults=faults)
        self._set(given)

    @classmethod
    def from_parts(cls, message: str, parts: Mapping[str, Any], *, faults: Sequence[Fault] = ()) -> Self:
        """Make an error from a message and parts that were read from a file."""
        error = cls(message, faults=faults)
        error._set(parts)
        return error

    @property
    def parts(self) -> dict[str, Any]:
        """Return the given parts, by their names in :data:`PARTS`."""
        return {name: vars(self)[name] for name in PARTS if name in vars(self)}

    def told(self, *, where: str | None = None, field: str | None = None) -> ConfigError:
        """Return the same error with another ``where`` or field name, for a caller who knows them better."""
        if self.field is None:
            return ConfigError(f"{where} {self}" if where else str(self), faults=self.faults)
        return ConfigError(**{**self.parts, "where": where, "field": field or self.field}, faults=self.faults)

    def _set(self, parts: Mapping[str, Any]) -> None:
        unknown = sorted(set(parts) - set(PARTS))
        if unknown:
            raise TypeError(f"ConfigError has no part {unknown[0]!r}")
        vars(self).update(parts)  # only the given parts, so that no value and the value None differ; pickling keeps them


def _assembled(*, field: str, problem: str, fix: str | None = None, where: str | None = None, **value: Any) -> str:
    text = f"{where} {field}" if where else field
    if "value" in value:
        text += f"={shown(value['value'])}:"
    elif not problem.startswith("is missing"):
        text += ":"
    return f"{text} {problem}; {fix}" if fix else f"{text} {problem}"


def shown(value: object) -> str:
    """Format a value for messages as Python does, but paths as plain strings and times without their class name."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    return repr(os.fspath(value)) if isinstance(value, os.PathLike) else repr(value)


class GpuOutOfMemory(JobError):
    """CUDA ran out of memory."""

    failure_class = FailureClass.GPU_OOM


class HostOutOfMemory(JobError):
    """The host, its cgroup or a set limit ran out of memory."""

    failure_class = FailureClass.HOST_OOM


class GpuLost(JobError):
    """The GPU is gone (NVML error 15) or quarantined."""

    failure_class = FailureClass.GPU_LOST


class Hang(JobError):
    """The job made no progress for longer than the limit."""

    failure_class = FailureClass.HANG


class Lost(JobError):
    """The runner or its host ended without writing an outcome."""

    failure_class = FailureClass.LOST


class Interrupted(JobError):
    """The job was stopped on purpose, by a user or a signal, after saving."""

    failure_class = FailureClass.INTERRUPTED


class DiskFull(JobError):
    """There are no free bytes or inodes where the step writes."""

    failure_class = FailureClass.DISK_FULL


class Bug(JobError):
    """An error of any other kind."""


_ERRORS: dict[FailureClass, type[JobError]] = {
    cls.failure_class: cls
    for cls in (
        DataError, ConfigError, GpuOutOfMemory, HostOutOfMemory, GpuLost, Hang, Lost, Interrupted, DiskFull, Bug,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The content of ``failure.json``: the class, a message for users, and further facts."""

    failure_class: FailureClass
    message: str
    attempt: int = 0
    faults: tuple[Fault, ...] = ()
    exit_code: int | None = None
    cancelled: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, the inverse of :meth:`from_json`."""
        data = asdict(replace(self, parts={}))
        data["failure_class"] = str(self.failure_class)
        del data["parts"]
        return data | {name: _plain(part) for name, part in self.parts.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Failure:
        """Read what :meth:`to_json` wrote. Keys that this version does not know are ignored."""
        known = {item.name: data[item.name] for item in fields(cls) if item.name in data and item.name != "parts"}
        known["failure_class"] = FailureClass(data["failure_class"])
        known["faults"] = tuple(Fault.from_json(fault) for fault in data.get("faults", ()))
        return cls(**known, parts={name: data[name] for name in PARTS if name in data})

    def to_error(self) -> JobError:
        """Return the exception of this class, to raise where the job was submitted."""
        if self.failure_class is FailureClass.CONFIG:
            return ConfigError.from_parts(self.message, self.parts, faults=self.faults)
        return _ERRORS[self.failure_class](self.message, faults=self.faults)


def _plain(value: Any) -> Any:
    """Return a value in a form that JSON can hold, or else as messages show it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=os.fspath))
    except (TypeError, ValueError):
        return shown(value)
