"""Runs jobs in containers of a Docker engine, on this host or on another by TLS."""

from __future__ import annotations

from airflow_nnunet.backends.docker.backend import DockerBackend
from airflow_nnunet.backends.docker.options import DockerOptions

__all__ = ["DockerBackend", "DockerOptions"]
