"""Options of the Docker backend, given in ``backend_options``. All values are JSON, because triggers store them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError

_USER = re.compile(r"[1-9][0-9]*:[0-9]+")
_TLS = ("ca_cert", "client_cert", "client_key")
GPUS = ("auto", "all", "none")
PULL = ("missing", "always", "never")


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerOptions:
    """Defines where and how containers of jobs run.

    Attributes:
        image: Image with ``nnunet_jobs`` and nnU-Net, preferably named by its digest.
        docker_url: URL of the engine: a Unix socket, or ``tcp://host:2376`` with ``tls``.
        tls: Paths ``ca_cert``, ``client_cert`` and ``client_key`` on every host that runs a worker or triggerer.
        docker_conn_id: Airflow connection of type ``docker`` with the login of a registry, for pulling.
        pull: ``missing`` (default), ``always`` or ``never``.
        gpus: ``auto`` gives GPUs if the engine names an NVIDIA runtime, ``all`` always, ``none`` never.
        user: ``uid:gid`` of the jobs; the owner of the jobs folder when empty. Never root.
        network: Network of the containers; ``none`` unless jobs need one.
        path_map: Folder on the engine's host for each folder of Airflow with another path.
        cache: Folder on the engine's host, writable for ``user``, that keeps compiled kernels from job to job.
        environment: Additional environment variables.
        python: Interpreter in the image.
        module: Program that takes the runner's command line.
        tmp_mib: Size of /tmp in MiB.
        pids_limit: Limit of processes.
        nofile: Limit of open files.
        start_timeout_s: Seconds to wait until the runner is on record.
        keep_containers: Keep containers that have ended, so that a person can look at them.
    """

    image: str
    docker_url: str = "unix:///var/run/docker.sock"
    tls: Mapping[str, str] = field(default_factory=dict)
    docker_conn_id: str | None = None
    pull: str = "missing"
    gpus: str = "auto"
    user: str | None = None
    network: str = "none"
    path_map: Mapping[str, str] = field(default_factory=dict)
    cache: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    python: str = "python"
    module: str = "nnunet_jobs"
    tmp_mib: int = 16384
    pids_limit: int = 4096
    nofile: int = 16384
    start_timeout_s: float = 120.0
    keep_containers: bool = False

    def __post_init__(self) -> None:
        self._require(bool(self.image) and not re.search(r"\s", self.image), "image", "name an image that has nnunet_jobs")
        local, remote = self.docker_url.startswith("unix://"), self.docker_url.startswith(("tcp://", "https://"))
        self._require(local or remote, "docker_url", "must begin with unix:// or tcp://")
        self._require(isinstance(self.tls, Mapping) and set(self.tls) <= set(_TLS), "tls", f"must be an object of {', '.join(_TLS)}")
        self._require(not self.tls or set(self.tls) == set(_TLS), "tls", f"needs all of {', '.join(_TLS)}")
        self._require(local or bool(self.tls), "docker_url", "an engine on the network needs tls, because its users are root on its host")
        self._require(all(os.path.isabs(path) for path in self.tls.values()), "tls", "must be absolute paths")
        self._require(self.pull in PULL, "pull", f"must be one of {', '.join(PULL)}")
        self._require(self.gpus in GPUS, "gpus", f"must be one of {', '.join(GPUS)}")
        self._require(self.user is None or bool(_USER.fullmatch(self.user)), "user", "must be uid:gid as numbers, and not root's")
        self._require(not self.network.startswith(("host", "container:")), "network", "must be none or a network of the engine's")
        paths = [*self.path_map, *self.path_map.values(), *filter(None, [self.cache])]
        absolute = all(isinstance(path, str) and os.path.isabs(path) and ".." not in Path(path).parts for path in paths)
        self._require(absolute, "path_map" if self.path_map else "cache", "must have absolute paths without '..'")
        texts = all(isinstance(value, str) for value in self.environment.values())
        self._require(texts, "environment", "must be an object of names and strings")
        for name in ("tmp_mib", "pids_limit", "nofile"):
            self._require(getattr(self, name) > 0, name, "must be more than 0")
        timeout = self.start_timeout_s
        self._require(math.isfinite(timeout) and timeout >= 1, "start_timeout_s", "must be 1 second or more")

    def outside(self, path: str) -> str:
        """Return the path on the engine's host of a path of Airflow, by the longest folder of ``path_map`` above it."""
        fitting = [folder for folder in self.path_map if Path(path).is_relative_to(folder)]
        if not fitting:
            return path
        folder = max(fitting, key=lambda name: len(Path(name).parts))
        return str(Path(self.path_map[folder]) / Path(path).relative_to(folder))

    def _require(self, holds: bool, name: str, fix: str) -> None:
        if not holds:
            raise ConfigError(where="backend_options:", field=name, value=getattr(self, name), problem=fix)
