"""Options of the Kubernetes backend, given in ``backend_options``. All values are JSON, because triggers store them."""

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
    """Names a persistent volume claim, and the path of a folder in its volume (``sub_path``), empty for all of it."""

    claim: str
    sub_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOptions:
    """Defines where and how pods of jobs run.

    Attributes:
        image: Image with ``nnunet_jobs`` and nnU-Net, preferably named by its digest.
        namespace: Namespace of the pods.
        volumes: Claim for each folder, whose path is the same for workers and pods: ``{"/data/nnunet":
            "nnunet-data"}`` or ``{"/data/nnunet": {"claim": "nnunet-data", "sub_path": "team-a"}}``. The longest folder
            that fits a root is used.
        pod_template_file: YAML file of a pod on the worker, for node selectors, tolerations, pull secrets, priorities,
            sidecars and caches.
        kubernetes_conn_id: Airflow connection of the cluster. Without one, ``config_file`` (a kubeconfig),
            ``in_cluster``, or the client's own default is used.
        cluster_context: Cluster context of the kubeconfig.
        gpu_resource: The cluster's name for a GPU, such as ``nvidia.com/gpu`` or ``nvidia.com/mig-3g.20gb``; empty if
            there is none.
        user: ``uid:gid`` of the jobs; the owner of the jobs folder when empty. Never root.
        python: Interpreter in the image.
        module: Program that takes the runner's command line.
        environment: Additional environment variables.
        tmp_mib: Limit of /tmp in MiB.
        schedule_timeout_s: Seconds that a pod may wait for a node; 0 means forever.
        start_timeout_s: Seconds from getting a node until the runner is on record.
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
        self._require(isinstance(self.environment, Mapping), "environment", "must be an object of names and strings")
        for key, value in self.environment.items():
            if not isinstance(value, str):
                raise ConfigError(where="backend_options:", field=f"environment[{key!r}]", value=value, problem="must be a string")
        self._require(isinstance(self.volumes, Mapping), "volumes", "must be an object of folders and claims")
        for folder in self.volumes:
            self._claim(folder)

    def holder(self, path: str) -> tuple[Claim, str] | None:
        """Return the claim of a folder and its path within the volume, or None if no claim has it."""
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
