"""Defines the settings of a predictor server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.http.loopback import is_loopback
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.settings import Settings

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,39}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """One predictor server.

    Attributes:
        workspace: Workspace of the served models.
        datasets: Datasets whose models are loaded before the server is ready.
        models: Models to load beside the promoted ones, as ``(dataset, model id)``; may push others out of memory as
            promoted ones do.
        host: Address to listen on; loopback only.
        port: Port to listen on.
        uds: Path of a Unix socket instead.
        allow_hosts: Names, without ports, by which clients may call the server beside ``localhost`` and loopback
            addresses, such as that of a proxy in front of it; web pages of these hosts may use it too. A Unix socket
            has no name of its own, so that there any name without a dot will do.
        prediction: How to predict, the same for every request.
        waiting: Requests that may be in the server at the same time; more are refused and may be retried.
        timeout_s: Limit in seconds of one request.
        upload_mib: Limit in MiB of one request's body.
        image_mib: Limit in MiB of one image in memory.
        models_mib: Memory in MiB for models; the least recently used ones are removed.
        drain_s: Seconds for running requests after the server is asked to stop.
        device: Device, as for a job.
        gpu_memory_mib: GPU memory in MiB, as for a job.
        cpus: Number of cores, as for a job.
        scratch: Local folder for uploads and results on their way.
    """

    workspace: Workspace
    scratch: Path
    datasets: tuple[str, ...] = ()
    models: tuple[tuple[str, str], ...] = ()
    host: str = "127.0.0.1"
    port: int = 8600
    uds: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    prediction: Settings = field(default_factory=Settings)
    waiting: int = 16
    timeout_s: float = 300.0
    upload_mib: int = 512
    image_mib: int = 4096
    models_mib: int = 8192
    drain_s: float = 60.0
    device: str = "auto"
    gpu_memory_mib: int | None = None
    cpus: int = 0

    def __post_init__(self) -> None:
        if not is_loopback(self.host):
            raise ConfigError(
                field="host",
                value=self.host,
                problem="the server has no login and listens on loopback or a Unix socket only",
                fix="use 127.0.0.1 or uds, and a proxy such as docker/nginx.conf in front",
            )
        for name in ("waiting", "timeout_s", "upload_mib", "image_mib", "models_mib", "drain_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(field=name, value=getattr(self, name), problem="must be more than 0")
        for name in self.allow_hosts:
            if not _HOST.fullmatch(name):
                raise ConfigError(
                    field="allow_hosts", value=name, problem="must be a host's name or address alone, without scheme, port and wildcard"
                )
        if not 0 <= self.port <= 65535:
            raise ConfigError(field="port", value=self.port, problem="must be 0 to 65535", fix="0 takes a free one")

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may always call the server."""
        return ("localhost",) if self.uds else ("localhost", self.host)
