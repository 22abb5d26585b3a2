"""Refuses pods that a template or a pod mutation hook made too permissive. Each finding names the field and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nnunet_jobs.contract.failure import ConfigError

if TYPE_CHECKING:
    from kubernetes.client import models as k8s  # type: ignore[import-untyped]

_SOCKETS = ("docker.sock", "containerd.sock", "crio.sock", "podman.sock")
_SECCOMP = ("RuntimeDefault", "Localhost")


def check_security(pod: k8s.V1Pod, container: str) -> None:
    """Check the whole pod as it would be sent.

    Raises:
        ConfigError: The pod is too permissive. The message lists all findings.
    """
    found = [*_pod(pod.spec), *_own(pod.spec, container)]
    for item in [*(pod.spec.init_containers or []), *pod.spec.containers]:
        found += _any_container(item)
    if found:
        raise ConfigError(
            f"pod of {pod.metadata.name}: {'; '.join(found)}. Change the pod template (pod_template_file) or the pod mutation hook"
        )


def _pod(spec: k8s.V1PodSpec) -> Iterator[str]:
    for name in ("host_network", "host_pid", "host_ipc"):
        if getattr(spec, name):
            yield f"{_camel(name)} must not be true: a job must not access its node"
    if spec.automount_service_account_token is not False:
        yield "automountServiceAccountToken must be false: a job never accesses the cluster"
    if spec.restart_policy != "Never":
        yield "restartPolicy must be Never: Airflow starts the attempts"
    if spec.active_deadline_seconds:
        yield "activeDeadlineSeconds would kill a training: use execution_timeout of the task, which saves a checkpoint"
    security = spec.security_context
    if security is None or not security.run_as_non_root or not security.run_as_user:
        yield "securityContext must have runAsNonRoot and a runAsUser that is not root"
    if security is None or security.seccomp_profile is None or security.seccomp_profile.type not in _SECCOMP:
        yield f"securityContext.seccompProfile must be of type {' or '.join(_SECCOMP)}"
    for volume in spec.volumes or []:
        if volume.host_path is not None and (volume.host_path.path == "/" or volume.host_path.path.endswith(_SOCKETS)):
            yield f"volume {volume.name}: hostPath {volume.host_path.path} gives a job the whole node"


def _own(spec: k8s.V1PodSpec, name: str) -> Iterator[str]:
    """Yield findings about the job's own container; a site's sidecars may write to their own file systems."""
    own = next((item for item in spec.containers if item.name == name), None)
    if own is None:
        yield f"container {name!r} is gone"
        return
    security = own.security_context
    if security is None or not security.read_only_root_filesystem:
        yield f"container {name}: securityContext.readOnlyRootFilesystem must be true"
    dropped = security.capabilities.drop if security is not None and security.capabilities is not None else None
    if "ALL" not in (dropped or []):
        yield f"container {name}: securityContext.capabilities.drop must have ALL"


def _any_container(item: k8s.V1Container) -> Iterator[str]:
    security = item.security_context
    if security is None:
        yield f"container {item.name}: needs a securityContext with allowPrivilegeEscalation: false"
        return
    if security.privileged:
        yield f"container {item.name}: privileged must not be true"
    if security.allow_privilege_escalation is not False:
        yield f"container {item.name}: allowPrivilegeEscalation must be false"
    if security.run_as_user == 0 or security.run_as_non_root is False:
        yield f"container {item.name}: must not run as root"
    if security.capabilities is not None and security.capabilities.add:
        yield f"container {item.name}: capabilities {', '.join(security.capabilities.add)} must not be added"
    if security.proc_mount not in (None, "Default"):
        yield f"container {item.name}: procMount must be Default"
    if security.seccomp_profile is not None and security.seccomp_profile.type not in _SECCOMP:
        yield f"container {item.name}: seccompProfile must be of type {' or '.join(_SECCOMP)}"


def _camel(name: str) -> str:
    return {"host_network": "hostNetwork", "host_pid": "hostPID", "host_ipc": "hostIPC"}[name]
