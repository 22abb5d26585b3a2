"""The cluster as the backend needs it: find, create and delete pods through the provider's hook and pod manager."""

from __future__ import annotations

import logging
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_nnunet.backends.kubernetes.options import PodOptions
from airflow_nnunet.backends.kubernetes.pod import ATTEMPT_LABEL, job_labels, pod_name
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.jobdir import JobDir

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
    from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager
    from kubernetes.client import models as k8s  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

# (connect, read) of a look that is repeated soon anyway; a triggerer has few threads, and a dead API server must not hold them.
_LOOK_TIMEOUT_S = (5, 15)
_NOT_FOUND, _CONFLICT = 404, 409
_REFUSED = (400, 401, 403, 404, 405, 422)
# The client keeps a kubeconfig in a variable of the whole process between reading it and using it.
_LOADING = threading.Lock()


class Unreachable(Exception):
    """The API server does not answer, or says that it cannot for now. Says nothing about any pod."""


class Refused(Exception):
    """The API server will not do it. ``transient``: a quota that is used up, which other pods' end frees."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Cluster:
    """Pods of jobs in one namespace. Cheap to make: connections and kubeconfigs are read at the first request.

    So a triggerer may make it in its event loop, and asks for the connection from a thread, where Airflow answers.
    """

    def __init__(self, options: PodOptions) -> None:
        self.options = options
        self.namespace = options.namespace

    @cached_property
    def hook(self) -> KubernetesHook:
        """The provider's hook.

        Raises:
            ConfigError: the provider is not installed, or there is no such connection or kubeconfig.
        """
        try:
            from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
        except ImportError as error:
            raise ConfigError(f"backend='kubernetes': {error}; pip install 'airflow-provider-nnunet[kubernetes]'") from error
        return KubernetesHook(
            conn_id=self.options.kubernetes_conn_id,
            kubernetes_conn_id=None,
            config_file=self.options.config_file,
            cluster_context=self.options.cluster_context,
            in_cluster=self.options.in_cluster,
        )

    @cached_property
    def api(self) -> Any:
        """The official client's CoreV1Api."""
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

    def read(self, job: JobDir, attempt: int) -> k8s.V1Pod | None:
        """An attempt's pod, None when there is none.

        Raises:
            Unreachable, Refused.
        """
        name = pod_name(job, attempt)
        found = self._ask(self.api.read_namespaced_pod, name, self.namespace, _request_timeout=_LOOK_TIMEOUT_S, missing=None)
        if found is not None and not job_labels(job).items() <= (found.metadata.labels or {}).items():
            raise Refused(f"pod {name} in namespace {self.namespace} is not ours: its labels are not this job's")
        return found

    def create(self, pod: k8s.V1Pod) -> None:
        """Create the pod, or find that it is there: another submitter was faster, or an answer of ours was lost. Tries a few times.

        Raises:
            Unreachable, Refused.
        """
        from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import generic_api_retry

        self._ask(generic_api_retry(self._create_once), pod)  # type: ignore[no-untyped-call]

    def _create_once(self, pod: k8s.V1Pod) -> None:
        """The provider's own retry takes a conflict for a passing trouble, so conflicts end here."""
        from kubernetes.client.rest import ApiException  # type: ignore[import-untyped]

        try:
            self._manager.run_pod_async(pod)
        except ApiException as error:
            if error.status != _CONFLICT:
                raise
            log.info("pod %s is there already", pod.metadata.name)

    def delete(self, job: JobDir, attempt: int, *, grace_s: int | None = None) -> None:
        """Delete an attempt's pod; done if there is none. ``grace_s``: between SIGTERM and SIGKILL, the pod's own when None.

        Raises:
            Unreachable, Refused.
        """
        grace = {} if grace_s is None else {"grace_period_seconds": grace_s}
        name = pod_name(job, attempt)
        self._ask(self.api.delete_namespaced_pod, name, self.namespace, **grace, _request_timeout=_LOOK_TIMEOUT_S, missing=None)

    def delete_earlier(self, job: JobDir, attempt: int) -> None:
        """Delete what earlier attempts of a job left, also where nobody knows any more how many there were.

        Raises:
            Unreachable, Refused.
        """
        selector = ",".join(f"{name}={value}" for name, value in job_labels(job).items())
        found = self._ask(self.api.list_namespaced_pod, self.namespace, label_selector=selector, _request_timeout=_LOOK_TIMEOUT_S)
        for pod in found.items:
            number = int(pod.metadata.labels.get(ATTEMPT_LABEL, "0"))
            if number < attempt and pod.metadata.deletion_timestamp is None:
                self.delete(job, number)

    def version(self) -> str:
        """The cluster's version.

        Raises:
            Unreachable, Refused.
        """
        from kubernetes.client import VersionApi

        return str(self._ask(VersionApi(self.api.api_client).get_code, _request_timeout=_LOOK_TIMEOUT_S).git_version)

    def may(self, verb: str) -> bool:
        """Whether we are allowed to do that with pods of the namespace.

        Raises:
            Unreachable, Refused.
        """
        from kubernetes import client  # type: ignore[import-untyped]

        wish = client.V1ResourceAttributes(namespace=self.namespace, verb=verb, resource="pods")
        review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=wish))
        api = client.AuthorizationV1Api(self.api.api_client)
        return bool(self._ask(api.create_self_subject_access_review, review, _request_timeout=_LOOK_TIMEOUT_S).status.allowed)

    def _ask(self, request: Any, *arguments: Any, missing: Any = Refused, **named: Any) -> Any:
        """Call the client; its errors as ours. ``missing``: the answer when there is no such object, where that is one."""
        from kubernetes.client.rest import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return request(*arguments, **named)
        except ApiException as error:
            if error.status == _NOT_FOUND and missing is not Refused:
                return missing
            message = _message(error)
            if error.status in _REFUSED:
                raise Refused(message, transient=error.status == 403 and "exceeded quota" in message) from error
            raise Unreachable(message) from error
        except (HTTPError, OSError) as error:
            raise Unreachable(f"the API server of namespace {self.namespace} does not answer: {error}") from error


def _message(error: Any) -> str:
    """The API server's own words, without headers and body."""
    import json

    try:
        text = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        text = str(error.reason)
    return f"the API server says {error.status}: {text}"
