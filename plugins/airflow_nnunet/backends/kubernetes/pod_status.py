"""Reads from a pod's status whether the job waits, runs or has ended, and the class of its failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_nnunet.backends.container_runtime import ContainerStage, ContainerStatus
from airflow_nnunet.backends.kubernetes.pod import CONTAINER
from nnunet_jobs.contract.exit_codes import RunnerExit
from nnunet_jobs.contract.failure import FailureClass

if TYPE_CHECKING:
    from kubernetes.client import models as k8s  # type: ignore[import-untyped]


# Reasons that kubelet gives for a waiting container and that never go away.
_DOOMED = ("CreateContainerConfigError", "InvalidImageName", "ErrImageNeverPull")
_NOT_STARTED = ("StartError", "ContainerCannotRun")


def status_of_pod(pod: k8s.V1Pod) -> ContainerStatus:
    """Convert a pod's status."""
    from airflow.providers.cncf.kubernetes.utils.container import get_container_status
    from airflow.providers.cncf.kubernetes.utils.pod_manager import PodPhase, detect_pod_terminate_early_issues

    own = get_container_status(pod, CONTAINER)
    facts = _facts(pod, own)
    ended = own.state.terminated if own is not None and own.state is not None else None
    if ended is not None or pod.status.phase in PodPhase.terminal_states:
        failure_class, message = _end(pod, ended)
        return ContainerStatus(
            stage=ContainerStage.ENDED,
            message=message,
            failure_class=failure_class,
            facts=facts,
            exit_code=ended.exit_code if ended else None,
        )
    if own is not None and own.state is not None and own.state.running is not None:
        return ContainerStatus(stage=ContainerStage.RUNNING, message=_trouble(pod), facts=facts)
    waiting = own.state.waiting if own is not None and own.state is not None else None
    # A template's sidecars and init containers may keep the job from starting too, so the provider checks all
    # containers.
    doomed = detect_pod_terminate_early_issues(pod)
    if doomed is None and waiting is not None and waiting.reason in _DOOMED:
        doomed = f"{waiting.reason}: {waiting.message or ''}"
    if doomed is not None:
        return ContainerStatus(
            stage=ContainerStage.DOOMED, message=" ".join(doomed.split()), failure_class=FailureClass.CONFIG, facts=facts
        )
    unscheduled = _condition(pod, "PodScheduled", "False")
    if unscheduled is not None or not pod.spec.node_name:
        message = unscheduled.message if unscheduled is not None else ""
        return ContainerStatus(
            stage=ContainerStage.UNSCHEDULED, message=f"waits for a node: {message}" if message else "waits for a node", facts=facts
        )
    reason = f"{waiting.reason}: {waiting.message or ''}".strip(": ") if waiting is not None else ""
    return ContainerStatus(
        stage=ContainerStage.STARTING, message=f"starts on {pod.spec.node_name}" + (f" ({reason})" if reason else ""), facts=facts
    )


def _end(pod: k8s.V1Pod, ended: k8s.V1ContainerStateTerminated | None) -> tuple[FailureClass, str]:
    """Return failure class and message of an end that the job's folder does not record."""
    name, reason, message = pod.metadata.name, pod.status.reason or "", pod.status.message or ""
    if reason == "Evicted":
        return _evicted(message), f"pod {name} was evicted from {pod.spec.node_name}: {message}"
    disrupted = _condition(pod, "DisruptionTarget", "True")
    if disrupted is not None:
        preempted = disrupted.reason == "PreemptionByScheduler"
        text = f"pod {name} was taken off {pod.spec.node_name} ({disrupted.reason}): {disrupted.message or ''}"
        return (FailureClass.INTERRUPTED if preempted else FailureClass.LOST), text.rstrip(": ")
    if ended is None:  # the node refused it before any container, such as with UnexpectedAdmissionError or OutOfcpu
        return FailureClass.LOST, f"pod {name} failed before it started ({reason or 'no reason given'}): {message}".rstrip(": ")
    if ended.reason == "OOMKilled":
        return FailureClass.HOST_OOM, f"the kernel killed pod {name} for memory (OOMKilled); give it more memory_mib"
    last = " ".join((ended.message or "").split())
    text = f"pod {name} ended with exit code {ended.exit_code} ({ended.reason or 'no reason given'}) and no outcome"
    if ended.reason in _NOT_STARTED or ended.exit_code in (126, 127):
        return FailureClass.CONFIG, f"{text}: {last}; does the image have this interpreter?"
    if ended.exit_code == RunnerExit.NO_FOLDER:
        return FailureClass.CONFIG, f"{text}: {last}; check volumes in backend_options, and the user"
    if "No module named" in last:
        return FailureClass.CONFIG, f"{text}: {last}; use an image that has nnunet_jobs"
    if reason in ("NodeLost", "Terminated", "NodeShutdown"):
        return FailureClass.LOST, f"{text}: {reason}, {message}"
    return FailureClass.LOST, f"{text}: {last}" if last else text


def _evicted(message: str) -> FailureClass:
    """Return the failure class of an evicted pod, by kubelet's message."""
    text = message.lower()
    if "ephemeral" in text or "emptydir" in text or "disk" in text or "inodes" in text:
        return FailureClass.DISK_FULL
    return FailureClass.HOST_OOM if "memory" in text else FailureClass.LOST


def _trouble(pod: k8s.V1Pod) -> str:
    """Return what is known about a pod that runs but whose heartbeat does not move."""
    ready = _condition(pod, "Ready", "False") or _condition(pod, "Ready", "Unknown")
    if pod.metadata.deletion_timestamp is not None:
        return "it is being deleted"
    return f"{ready.reason}: {ready.message or ''}".strip(": ") if ready is not None and ready.reason else ""


def _condition(pod: k8s.V1Pod, kind: str, value: str) -> k8s.V1PodCondition | None:
    return next((item for item in pod.status.conditions or [] if item.type == kind and item.status == value), None)


def _facts(pod: k8s.V1Pod, own: k8s.V1ContainerStatus | None) -> dict[str, Any]:
    ended = own.state.terminated if own is not None and own.state is not None else None
    return {
        "backend": "kubernetes",
        "name": pod.metadata.name,
        "namespace": pod.metadata.namespace,
        "node": pod.spec.node_name,
        "image": own.image if own is not None else next((item.image for item in pod.spec.containers if item.name == CONTAINER), None),
        "image_digest": (own.image_id if own is not None else None) or None,
        "exit_code": ended.exit_code if ended is not None else None,
        "oom_killed": ended is not None and ended.reason == "OOMKilled",
    }
