"""Backends define where jobs run. All have the interface of :class:`Backend` and pass one contract test suite.

Other distributions add backends by entry points, see :mod:`airflow_nnunet.backends.third_party`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow_nnunet.backends import third_party
from airflow_nnunet.backends.base import DEFAULT_LOST_AFTER_S, Backend, JobStatus, Watch, read_status
from airflow_nnunet.backends.docker import DockerBackend
from airflow_nnunet.backends.fake import FakeBackend, FakeOutcome
from airflow_nnunet.backends.kubernetes import KubernetesBackend
from airflow_nnunet.backends.local import LocalBackend
from nnunet_jobs.contract.failure import ConfigError

__all__ = [
    "DEFAULT_LOST_AFTER_S",
    "Backend",
    "DockerBackend",
    "FakeBackend",
    "FakeOutcome",
    "JobStatus",
    "KubernetesBackend",
    "LocalBackend",
    "Watch",
    "examine_third_party",
    "get_backend",
    "read_status",
]

_BACKENDS: dict[str, type[Backend]] = {cls.name: cls for cls in (LocalBackend, DockerBackend, KubernetesBackend, FakeBackend)}


def get_backend(name: str, **options: Any) -> Backend:
    """Return the backend of this name with its options.

    Raises:
        ConfigError: There is no such backend or option, or a backend of another distribution cannot be used.
    """
    chosen = third_party.load(name, _BACKENDS) or _BACKENDS.get(name)
    if chosen is None:
        known = sorted({*_BACKENDS, *third_party.names()})
        raise ConfigError(field="backend", value=name, problem=f"must be one of {', '.join(known)}")
    try:
        return chosen(**options)
    except TypeError as error:
        raise ConfigError(field="backend", value=name, problem=str(error), fix="check backend_options in section [nnunet]") from error


def examine_third_party() -> Iterator[tuple[bool, str]]:
    """Yield for each backend of another distribution whether it can be used, and its origin or the fix."""
    for name in third_party.names():
        try:
            third_party.load(name, _BACKENDS)
        except ConfigError as error:
            yield False, str(error)
        else:
            yield True, f"{name}, {third_party.origin(name)}"
