"""Checks the backend for the doctor, such as a container engine or a cluster."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_nnunet.backends import Backend, examine_third_party
from airflow_nnunet.doctor.finding import Finding
from airflow_nnunet.settings.config import NnunetConfig
from nnunet_jobs.contract.failure import ConfigError


def examine_backend(config: NnunetConfig) -> Iterator[Finding]:
    """Yield findings about backends of other distributions, and about the chosen backend."""
    for usable, text in examine_third_party():
        yield Finding(topic="installed backend", ok=usable, text=text)
    backend = _make(config)
    if isinstance(backend, ConfigError):
        yield Finding(topic="backend", ok=False, blocks=True, text=str(backend))
        return
    for fit, text in backend.examine(config.workspace):
        yield Finding(topic=f"backend {backend.name}", ok=fit, blocks=not fit, text=text)


def runs_here(config: NnunetConfig) -> bool:
    """Return whether jobs use what is installed on this host."""
    backend = _make(config)
    return isinstance(backend, ConfigError) or backend.runs_here


def _make(config: NnunetConfig) -> Backend | ConfigError:
    try:
        return config.make_backend()
    except ConfigError as error:
        return error
