"""Backends say where jobs run. All have the interface of :class:`Backend` and pass one contract test suite."""

from __future__ import annotations

from typing import Any

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
    "get_backend",
    "read_status",
]

_BACKENDS: dict[str, type[Backend]] = {cls.name: cls for cls in (LocalBackend, DockerBackend, KubernetesBackend, FakeBackend)}


def get_backend(name: str, **options: Any) -> Backend:
    """The backend of this name with its options.

    Raises:
        ConfigError: no such backend or option.
    """
    if name not in _BACKENDS:
        raise ConfigError(field="backend", value=name, problem=f"must be one of {', '.join(sorted(_BACKENDS))}")
    try:
        return _BACKENDS[name](**options)
    except TypeError as error:
        raise ConfigError(field="backend", value=name, problem=str(error), fix="check backend_options in section [nnunet]") from error
