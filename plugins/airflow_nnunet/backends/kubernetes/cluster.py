"""Finds, creates and deletes pods of a cluster through the provider's hook and pod manager."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_nnunet.backends.container_runtime import ContainerStatus, RequestRejected, Unreachable
from airflow_nnunet.backends.kubernetes.options import PodOptions
from airflow_nnunet.backends.kubernetes.pod import (
    ATTEMPT_LABEL,
    FOLDER_LABEL,
    JOB_ANNOTATION,
    build_pod,
    folder_label,
    grace_period_s,
    job_labels,
    pod_name,
)
from airflow_nnunet.backends.kubernetes.pod_status import status_of_pod
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
    from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager
    from kubernetes.client import models as k8s  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

# Limits to connect and read. Requests are repeated anyway, and an API server that is down must not block threads.
_LOOK_TIMEOUT_S = (5, 15)
_ENDED = "status.phase!=Pending,status.phase!=Running,status.phase!=Unknown"
_SWEPT = 20  # most pods removed at each start
_NOT_FOUND, _CONFLICT = 404, 409
_REFUSED = (400, 401, 403, 404, 405, 422)
# The client keeps a kubeconfig in a global variable between reading and using it.
_LOADING = threading.Lock()


class Cluster:
    """Manages pods of jobs in one namespace. Connections and kubeconfigs are read at the first request only.

    So a triggerer can create the object in its event loop, and read the connection in a thread, where Airflow allows
    it.
    """

    def __init__(self, options: PodOptions) -> None:
        self.options = options
        self.namespace = options.namespace

    @cached_property
    def hook(self) -> KubernetesHook:
        """Return the provider's hook.

        Raises:
            ConfigError: The provider is not installed, or there is no such connection or kubeconfig.
        """
        try:
            from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
        except ImportError as error:
            raise ConfigError(
                field="backend", value="kubernetes", problem=str(error), fix="pip install 'airflow-provider-nnunet[kubernetes]'"
            ) from error
        return KubernetesHook(
            conn_id=self.options.kubernetes_conn_id,
            kubernetes_conn_id=None,
            config_file=self.options.config_file,
            cluster_context=self.options.cluster_context,
            in_cluster=self.options.in_cluster,
        )

    @cached_property
    def api(self) -> Any:
        """Return the official client's CoreV1Api."""
        from airflow.sdk.exceptions import AirflowException
        from kubernetes.config import ConfigException  # type: ignore[import-untyped]

        try:
            with _LOADING:
                return self.hook.core_v1_client
        except (ConfigException, AirflowException, OSError) as error:
            named = {name: getattr(self.options, name) for name in ("kubernetes_conn_id", "config_file", "cluster_context", "in_cluster")}
            given = ", ".join(f"{name}={value!r}" for name, value in named.items() if value is not None) or "no kubernetes_conn_id"
            raise ConfigError(f"backend_options: {given}: {error}; name a connection, a kubeconfig, or set in_cluster") from error

    @cached_property
    def _manager(self) -> PodManager:
        from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager

        return PodManager(kube_client=self.api)

    # --- ContainerRuntime ---------------------------------------------------------------------------------------
    def name(self, job: JobDir, attempt: int) -> str:
        """See :class:`ContainerRuntime`."""
        return f"pod {pod_name(job, attempt)}"

    def create(self, job: JobDir, spec: JobSpec, attempt: int) -> None:
        """See :class:`ContainerRuntime`. The request is tried several times.

        A pod that exists already belongs to another submitter, or the answer to an earlier try was lost.
        """
        from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import generic_api_retry

        pod = build_pod(self.options, job, spec, attempt)
        self._ask(generic_api_retry(self._create_once), pod)  # type: ignore[no-untyped-call]

    def look(self, job: JobDir, attempt: int) -> ContainerStatus | None:
        """See :class:`ContainerRuntime`."""
        name = pod_name(job, attempt)
        found = self._ask(self.api.read_namespaced_pod, name, self.namespace, _request_timeout=_LOOK_TIMEOUT_S, missing=None)
        if found is None:
            return None
        if not job_labels(job).items() <= (found.metadata.labels or {}).items():
            raise RequestRejected(f"pod {name} in namespace {self.namespace} is not ours: it has labels of another job")
        return status_of_pod(found)

    def stop(self, job: JobDir, attempt: int, *, grace_s: float) -> None:
        """See :class:`ContainerRuntime`. The cluster sends SIGTERM now, and SIGKILL after the grace period and a margin."""
        self._delete(pod_name(job, attempt), grace_period_seconds=grace_period_s(grace_s))

    def remove(self, job: JobDir, attempt: int) -> None:
        """See :class:`ContainerRuntime`."""
        self._delete(pod_name(job, attempt))

    def remove_earlier(self, job: JobDir, attempt: int) -> None:
        """See :class:`ContainerRuntime`. Pods are found by labels, because the number of attempts may be unknown."""
        for pod in self._list(job_labels(job)):
            if int(pod.metadata.labels.get(ATTEMPT_LABEL, "0")) < attempt and pod.metadata.deletion_timestamp is None:
                self._delete(pod.metadata.name)
        if not self.options.keep_pods:
            self._sweep(job.path.parent)

    # --- what the doctor asks -----------------------------------------------------------------------------------
    def version(self) -> str:
        """Return the cluster's version."""
        from kubernetes.client import VersionApi

        return str(self._ask(VersionApi(self.api.api_client).get_code, _request_timeout=_LOOK_TIMEOUT_S).git_version)

    def may(self, verb: str) -> bool:
        """Return whether we may do this with pods of the namespace."""
        from kubernetes import client  # type: ignore[import-untyped]

        wish = client.V1ResourceAttributes(namespace=self.namespace, verb=verb, resource="pods")
        review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=wish))
        api = client.AuthorizationV1Api(self.api.api_client)
        return bool(self._ask(api.create_self_subject_access_review, review, _request_timeout=_LOOK_TIMEOUT_S).status.allowed)

    # --- private ------------------------------------------------------------------------------------------------
    def _sweep(self, jobs: Path) -> None:
        """Remove pods of ended jobs whose end no process saw, such as after a cancel in the web page."""
        for pod in self._list({FOLDER_LABEL: folder_label(jobs)}, field_selector=_ENDED, limit=_SWEPT):
            job = JobDir(jobs / (pod.metadata.annotations or {}).get(JOB_ANNOTATION, ""))
            attempt = int(pod.metadata.labels.get(ATTEMPT_LABEL, "0"))
            if job.path == jobs or not job.path.is_dir():  # the job was removed
                self._delete(pod.metadata.name)
                continue
            state = job.state()
            if state.attempt > attempt or state.phase.final:
                job.note_container(attempt, status_of_pod(pod).facts)
                self._delete(pod.metadata.name)

    def _list(self, labels: Mapping[str, str], **more: Any) -> list[k8s.V1Pod]:
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        found = self._ask(self.api.list_namespaced_pod, self.namespace, label_selector=selector, _request_timeout=_LOOK_TIMEOUT_S, **more)
        return list(found.items)

    def _create_once(self, pod: k8s.V1Pod) -> None:
        """Create the pod once. Conflicts are handled here, because the provider's own retry would repeat them."""
        from kubernetes.client.rest import ApiException  # type: ignore[import-untyped]

        try:
            self._manager.run_pod_async(pod)
        except ApiException as error:
            if error.status != _CONFLICT:
                raise
            log.info("pod %s is there already", pod.metadata.name)

    def _delete(self, name: str, **grace: int) -> None:
        self._ask(self.api.delete_namespaced_pod, name, self.namespace, **grace, _request_timeout=_LOOK_TIMEOUT_S, missing=None)

    def _ask(self, request: Any, *arguments: Any, missing: Any = RequestRejected, **named: Any) -> Any:
        """Call the client and translate its errors. ``missing`` is returned if the object does not exist, instead of an
        error.

        Raises:
            Unreachable: The API server does not answer.
            RequestRejected: The API server refuses the request.
        """
        from kubernetes.client.rest import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return request(*arguments, **named)
        except ApiException as error:
            if error.status == _NOT_FOUND and missing is not RequestRejected:
                return missing
            message = _message(error)
            if error.status in _REFUSED:
                raise RequestRejected(message, transient=error.status == 403 and "exceeded quota" in message) from error
            raise Unreachable(message) from error
        except (HTTPError, OSError) as error:
            raise Unreachable(f"the API server of namespace {self.namespace} does not answer: {error}") from error


def _message(error: Any) -> str:
    """Return the API server's message, without headers and body."""
    import json

    try:
        text = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        text = str(error.reason)
    return f"the API server says {error.status}: {text}"
