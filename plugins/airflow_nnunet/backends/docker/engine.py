"""Creates, inspects, stops and removes containers of a Docker engine, through the hook of the Docker provider."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from airflow_nnunet.backends.container_runtime import ContainerStage, ContainerStatus, RequestRejected, Unreachable
from airflow_nnunet.backends.docker.container import LABEL, LEASE, RUN, Role, container_arguments, container_name, granted, job_labels
from airflow_nnunet.backends.docker.options import DockerOptions
from nnunet_jobs.contract.exit_codes import RunnerExit
from nnunet_jobs.contract.failure import ConfigError, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.grant import Grant
from nnunet_jobs.contract.job.spec import JobSpec

log = logging.getLogger(__name__)

_TIMEOUT_S = 30  # limit of one request; a triggerer has few threads
_NOT_FOUND, _CONFLICT, _OUR_FAULT = 404, 409, (400, 401, 403, 404, 405, 409, 422)
_TAIL = 20
_KILL_MARGIN_S = 30.0
_MIB = 1 << 20
_Result = TypeVar("_Result")


class DockerEngine:
    """Manages containers of jobs on one engine. It connects at the first request only."""

    def __init__(self, options: DockerOptions) -> None:
        self.options = options
        self._told: dict[str, float] = {}

    # --- ContainerRuntime ---------------------------------------------------------------------------------------
    def name(self, job: JobDir, attempt: int) -> str:
        """See :class:`ContainerRuntime`."""
        return f"container {container_name(job, attempt)}"

    def create(self, job: JobDir, spec: JobSpec, attempt: int) -> None:
        """See :class:`ContainerRuntime`. If GPUs are wanted and exist, this creates the container that leases them."""
        facts = self.ask(self.client.info)
        total = int(facts.get("MemTotal", 0)) // _MIB
        if total and spec.resources.shm_mib > total:
            raise ConfigError(
                field="shm_mib",
                value=spec.resources.shm_mib,
                problem=f"the engine's host {facts.get('Name', '')} has {total} MiB of memory in all",
                fix="ask for less shared memory; 8192 MiB are enough for nnU-Net's own number of workers",
            )
        self._create(job, spec, attempt, LEASE if self._wants_gpus(spec, facts) else RUN)

    def create_granted(self, job: JobDir, spec: JobSpec, attempt: int, grant: Grant) -> None:
        """Start the attempt on the GPUs that its first container has leased, or find that it exists."""
        if self._inspect(container_name(job, attempt)) is None:
            self._create(job, spec, attempt, granted(grant.gpus))

    def look(self, job: JobDir, attempt: int) -> ContainerStatus | None:
        """See :class:`ContainerRuntime`. Returns the attempt's container or, before it exists, the one that leases GPUs."""
        for role in (RUN, LEASE):
            found = self._inspect(container_name(job, attempt, role))
            if found is not None:
                return self._container_status(found)
        return None

    def stop(self, job: JobDir, attempt: int, *, grace_s: float) -> None:
        """See :class:`ContainerRuntime`."""
        for role in (RUN, LEASE):
            name = container_name(job, attempt, role)
            first = name not in self._told
            since = self._told.setdefault(name, time.monotonic())
            late = time.monotonic() > since + grace_s + _KILL_MARGIN_S
            if first or late:
                self._signal(name, "SIGKILL" if late else "SIGTERM")

    def remove(self, job: JobDir, attempt: int) -> None:
        """See :class:`ContainerRuntime`."""
        for role in (RUN, LEASE):
            self._remove(container_name(job, attempt, role))

    def remove_earlier(self, job: JobDir, attempt: int) -> None:
        """See :class:`ContainerRuntime`."""
        labels = [f"{name}={value}" for name, value in job_labels(job).items()]
        for found in self.ask(self.client.containers, all=True, filters={"label": labels}):
            if int(found["Labels"].get(f"{LABEL}.attempt", "0")) < attempt:
                self._remove(found["Id"])
        if not self.options.keep_containers:
            self._sweep(job.path.parent)

    # --- what the doctor asks -----------------------------------------------------------------------------------
    @cached_property
    def client(self) -> Any:
        """Return the low-level client of the provider's hook.

        Raises:
            ConfigError: The provider is not installed.
            Unreachable: The engine does not answer.
        """
        return self.ask(lambda: self._hook(None).api_client)

    def has_gpus(self, facts: dict[str, Any]) -> bool:
        """Return whether containers of this engine can have GPUs, by the engine's own ``facts``."""
        if self.options.gpus != "auto":
            return self.options.gpus == "all"
        known = [*facts.get("Runtimes", {}), *(str(item.get("ID", "")) for item in facts.get("DiscoveredDevices") or [])]
        return any("nvidia" in name for name in known)

    def image_facts(self) -> dict[str, Any] | None:
        """Return the engine's facts about the image, or None if it does not have it."""
        found: dict[str, Any] | None = self.ask(self.client.inspect_image, self.options.image, missing=None)
        return found

    def ask(self, question: Callable[..., _Result], *arguments: Any, missing: Any = RequestRejected, **named: Any) -> Any:
        """Ask the engine.

        Args:
            missing: Value to return if the object does not exist, instead of an error.

        Raises:
            Unreachable: The engine does not answer.
            RequestRejected: The engine refuses the request.
        """
        from airflow.sdk.exceptions import AirflowException
        from docker.errors import APIError, DockerException
        from requests.exceptions import RequestException

        try:
            return question(*arguments, **named)
        except APIError as error:
            if error.status_code == _NOT_FOUND and missing is not RequestRejected:
                return missing
            text = str(error.explanation or error)
            raise RequestRejected(text, transient=error.status_code not in _OUR_FAULT, status=error.status_code) from error
        except (RequestException, DockerException, AirflowException, OSError) as error:
            raise Unreachable(f"the engine at {self.options.docker_url} does not answer: {error}") from error

    # --- private ------------------------------------------------------------------------------------------------
    def _sweep(self, jobs: Path) -> None:
        """Remove containers of ended jobs whose end no process saw, such as after a cancel in the web page."""
        for found in self.ask(self.client.containers, all=True, filters={"label": LABEL, "status": ["exited", "dead"]}):
            labels = found["Labels"]
            job = JobDir(jobs / labels[LABEL])
            if job_labels(job).items() <= labels.items() and job.path.is_dir():  # and no other Airflow's
                attempt, state = int(labels.get(f"{LABEL}.attempt", "0")), job.state()
                if state.attempt > attempt or state.phase.final:
                    seen = self._inspect(found["Id"])
                    if seen is not None and labels.get(f"{LABEL}.role") == RUN.name:
                        job.note_container(attempt, self._facts(seen))
                    self._remove(found["Id"])

    def _hook(self, conn_id: str | None) -> Any:
        try:
            from airflow.providers.docker.hooks.docker import DockerHook
        except ImportError as error:
            raise ConfigError(
                field="backend", value="docker", problem=str(error), fix="pip install 'airflow-provider-nnunet[docker]'"
            ) from error
        tls = _own_authority(self.options.tls) if self.options.tls else None
        return DockerHook(docker_conn_id=conn_id, base_url=self.options.docker_url, version="auto", tls=tls, timeout=_TIMEOUT_S)

    def _wants_gpus(self, spec: JobSpec, facts: dict[str, Any]) -> bool:
        if not spec.resources.gpus or spec.resources.device == "cpu":
            return False
        if self.has_gpus(facts):
            return True
        if spec.resources.device == "cuda":
            raise ConfigError(
                field="device",
                value="cuda",
                problem=f"the engine at {self.options.docker_url} names no NVIDIA runtime (gpus={self.options.gpus!r})",
                fix="install NVIDIA's container toolkit there, or set gpus to all in backend_options if it is not registered",
            )
        return False

    def _create(self, job: JobDir, spec: JobSpec, attempt: int, role: Role) -> None:
        arguments = container_arguments(self.options, job, spec, attempt, role)
        name = arguments["name"]
        self._pull()
        try:
            self.ask(self.client.create_container, **arguments)
        except RequestRejected as error:
            if error.status != _CONFLICT:  # the name is in use: another submitter was faster, or an answer was lost
                raise
            log.info("container %s is there already", name)
        try:
            self.ask(self.client.start, name)
        except RequestRejected as error:
            self._remove(name)
            if "device driver" in str(error):
                raise ConfigError(
                    field="gpus", value=self.options.gpus, problem=str(error), fix="install NVIDIA's container toolkit on the engine's host"
                ) from error
            raise

    def _pull(self) -> None:
        """Pull the image if the options say so; the registry's login comes from the connection.

        Raises:
            ConfigError: There is no such image.
        """
        image, how = self.options.image, self.options.pull
        if how == "always" or (how == "missing" and self.image_facts() is None):
            log.info("pulling %s", image)
            client = self.ask(lambda: self._hook(self.options.docker_conn_id).api_client)
            client.timeout = None  # an image has gigabytes
            try:
                for line in self.ask(client.pull, image, stream=True, decode=True):
                    if "error" in line:
                        raise RequestRejected(str(line["error"]))
            except RequestRejected as error:
                raise ConfigError(
                    field="image", value=image, problem=f"cannot be pulled: {error}", fix="build it, or name another one"
                ) from error
        elif how == "never" and self.image_facts() is None:
            raise ConfigError(
                field="image", value=image, problem="the engine does not have it, and pull is 'never'", fix="build or load it there"
            )

    def _inspect(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.ask(self.client.inspect_container, name, missing=None)
        return found

    def _signal(self, name: str, number: str) -> None:
        with contextlib.suppress(RequestRejected):  # it has ended in the meantime
            self.ask(self.client.kill, name, signal=number, missing=None)

    def _remove(self, name: str) -> None:
        try:
            self.ask(self.client.remove_container, name, force=True, v=True, missing=None)
        except RequestRejected as error:
            if error.status != _CONFLICT:  # it is being removed already
                raise

    def _container_status(self, found: dict[str, Any]) -> ContainerStatus:
        state = found["State"]
        status = state["Status"]
        facts = self._facts(found)
        if status in ("created", "restarting"):
            return ContainerStatus(stage=ContainerStage.STARTING, message=f"is {status}", facts=facts)
        if status in ("running", "paused"):
            return ContainerStatus(
                stage=ContainerStage.RUNNING, message="" if status == "running" else "is paused", where=facts["host"], facts=facts
            )
        code = int(state["ExitCode"])
        kind, message = self._end(found, code)
        return ContainerStatus(stage=ContainerStage.ENDED, message=message, failure_class=kind, exit_code=code, facts=facts)

    def _end(self, found: dict[str, Any], code: int) -> tuple[FailureClass, str]:
        """Return failure class and message of an end that the job's folder does not record."""
        name, state = found["Name"].lstrip("/"), found["State"]
        if state.get("OOMKilled"):
            return FailureClass.HOST_OOM, f"the kernel killed container {name} for memory; give it more memory_mib"
        said = self.ask(self.client.logs, found["Id"], tail=_TAIL, missing=b"").decode(errors="replace")
        last = " ".join((said or str(state.get("Error") or "")).split())[-1000:]
        text = f"container {name} ended with exit code {code} and no outcome" + (f": {last}" if last else "")
        if code in (126, 127):
            return FailureClass.CONFIG, f"{text}; does the image have the interpreter {self.options.python!r}?"
        if code == RunnerExit.NO_FOLDER:
            return FailureClass.CONFIG, f"{text}; check path_map and user in backend_options"
        if "No module named" in last:
            return FailureClass.CONFIG, f"{text}; use an image that has {self.options.module}"
        return FailureClass.LOST, text

    def _facts(self, found: dict[str, Any]) -> dict[str, Any]:
        state = found["State"]
        ended = state["Status"] in ("exited", "dead")
        return {
            "backend": "docker",
            "name": found["Name"].lstrip("/"),
            "host": self._host,
            "image": found["Config"]["Image"],
            "image_digest": self._digest(found["Image"]),
            "exit_code": int(state["ExitCode"]) if ended else None,
            "oom_killed": bool(state.get("OOMKilled")),
        }

    @cached_property
    def _host(self) -> str:
        return str(self.ask(self.client.info).get("Name", ""))

    def _digest(self, image_id: str) -> str:
        """Return an image's digest of its registry, or else the engine's id."""
        found = self.ask(self.client.inspect_image, image_id, missing={}) or {}
        return str(next(iter(found.get("RepoDigests") or []), image_id))


def _own_authority(paths: Mapping[str, str]) -> Any:
    """Return a TLS configuration of these files only, because requests would use $REQUESTS_CA_BUNDLE instead."""
    from docker.tls import TLSConfig

    class OwnAuthority(TLSConfig):  # type: ignore[misc]
        def configure_client(self, client: Any) -> None:
            super().configure_client(client)
            client.trust_env = False

    return OwnAuthority(ca_cert=paths["ca_cert"], client_cert=(paths["client_cert"], paths["client_key"]), verify=True)
