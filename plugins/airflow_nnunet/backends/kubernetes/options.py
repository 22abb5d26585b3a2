"""Options of the Kubernetes backend, as in ``backend_options`` of section [nnunet]. All values are JSON, because triggers store them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_RESOURCE = re.compile(r"[a-z0-9][a-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_USER = re.compile(r"[1-9][0-9]*:[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A persistent volume claim that holds a folder. ``sub_path`` is that folder within the volume, empty for all of it."""

    claim: str
    sub_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOptions:
    """Where and how pods of jobs run.

    Attributes:
        image: Image with ``nnunet_jobs`` and nnU-Net, preferably named by its digest.
        namespace: Namespace of the pods.
        volumes: Folder, under the path that workers and pods share, to the claim that holds it: ``{"/data/nnunet":
            "nnunet-data"}`` or ``{"/data/nnunet": {"claim": "nnunet-data", "sub_path": "team-a"}}``. The longest folder
            that fits a root is used.
        pod_template_file: YAML of a pod on the worker; for node selectors, tolerations, pull secrets, priorities,
            sidecars, caches.
        kubernetes_conn_id: Airflow connection of the cluster; without one ``config_file`` (a kubeconfig), or
            ``in_cluster``, or what the client finds by itself.
        cluster_context: Cluster context of the kubeconfig.
        gpu_resource: What the cluster calls a GPU, such as ``nvidia.com/gpu`` or ``nvidia.com/mig-3g.20gb``; empty
            where there is none.
        user: ``uid:gid`` of the jobs; the owner of the jobs folder when empty. Never root.
        python: Interpreter in the image.
        module: Program that takes the runner's command line.
        environment: Extra variables.
        tmp_mib: Limit of /tmp in MiB.
        schedule_timeout_s: Seconds that a pod may wait for a node; 0 means forever.
        start_timeout_s: Seconds from a node until the runner is on record.
        keep_pods: Keep pods that have ended, so that a person can look at them.
    """

    image: str
    namespace: str
    volumes: Mapping[str, Any] = field(default_factory=dict)
    pod_template_file: str | None = None
    kubernetes_conn_id: str | None = None
    config_file: str | None = None
    cluster_context: str | None = None
    in_cluster: bool | None = None
    gpu_resource: str = "nvidia.com/gpu"
    user: str | None = None
    python: str = "python"
    module: str = "nnunet_jobs"
    environment: Mapping[str, str] = field(default_factory=dict)
    tmp_mib: int = 16384
    schedule_timeout_s: float = 86400.0
    start_timeout_s: float = 900.0
    keep_pods: bool = False

    def __post_init__(self) -> None:
        self._require(bool(self.image) and not re.search(r"\s", self.image), "image", "name an image that has nnunet_jobs")
        self._require(bool(_DNS_LABEL.fullmatch(self.namespace)), "namespace", "must be the name of a namespace")
        self._require(
            not self.gpu_resource or bool(_RESOURCE.fullmatch(self.gpu_resource)),
            "gpu_resource",
            "must look like nvidia.com/gpu, or be empty",
        )
        self._require(self.user is None or bool(_USER.fullmatch(self.user)), "user", "must be uid:gid as numbers, and not root's")
        self._require(self.tmp_mib > 0, "tmp_mib", "must be more than 0 MiB")
        for name, least in (("schedule_timeout_s", 0.0), ("start_timeout_s", 1.0)):
            value = getattr(self, name)
            self._require(math.isfinite(value) and value >= least, name, f"must be {least:g} seconds or more")
        for name in ("pod_template_file", "config_file"):
            path = getattr(self, name)
            self._require(path is None or os.path.isabs(path), name, "must be an absolute path")
        self._require(not (self.in_cluster and self.config_file), "config_file", "cannot go with in_cluster=True; choose one")
        self._require(isinstance(self.environment, Mapping), "environment", "must be an object of names and texts")
        for key, value in self.environment.items():
            if not isinstance(value, str):
                raise ConfigError(where="backend_options:", field=f"environment[{key!r}]", value=value, problem="must be a text")
        self._require(isinstance(self.volumes, Mapping), "volumes", "must be an object of folders and claims")
        for folder in self.volumes:
            self._claim(folder)

    def holder(self, path: str) -> tuple[Claim, str] | None:
        """(claim, path within its volume) of a folder; None when no claim holds it."""
        folders = [folder for folder in self.volumes if Path(path).is_relative_to(folder)]
        if not folders:
            return None
        folder = max(folders, key=lambda folder: len(Path(folder).parts))
        claim = self._claim(folder)
        inside = Path(claim.sub_path) / Path(path).relative_to(folder)
        return claim, "" if inside == Path() else str(inside)

    def _claim(self, folder: str) -> Claim:
        value = self.volumes[folder]
        wrong = partial(ConfigError, where="backend_options:", field=f"volumes[{folder!r}]", value=value)
        if not os.path.isabs(folder) or ".." in Path(folder).parts:
            raise wrong(problem="the folder must be an absolute path without '..'")
        if isinstance(value, str):
            value = {"claim": value}
        try:
            claim = Claim(**value)
        except TypeError as error:
            raise wrong(problem="must be a claim's name, or an object with claim and sub_path") from error
        if not isinstance(claim.claim, str) or not _CLAIM.fullmatch(claim.claim):
            raise wrong(problem="must name a persistent volume claim")
        if not isinstance(claim.sub_path, str) or os.path.isabs(claim.sub_path) or ".." in Path(claim.sub_path).parts:
            raise wrong(problem="sub_path must be relative, without '..'")
        return claim

    def _require(self, holds: bool, name: str, fix: str) -> None:
        if not holds:
            raise ConfigError(where="backend_options:", field=name, value=getattr(self, name), problem=fix)
