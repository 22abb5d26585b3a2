"""Jobs as containers of a Docker engine, on this host or by TLS on another: one for each attempt, found again by its name."""

from __future__ import annotations

from airflow_nnunet.backends.docker.backend import DockerBackend
from airflow_nnunet.backends.docker.options import DockerOptions

__all__ = ["DockerBackend", "DockerOptions"]
