"""A stand-in for a Kubernetes cluster: an API server on loopback that keeps pods, and a kubelet that runs them as local processes.

What is real: HTTP, the API's paths, codes and objects (unknown and missing fields are refused by the official client's models), the
container's command, environment and host name, SIGTERM and SIGKILL with the grace period, exit codes. What is not: images, mounts,
users and limits; a pod sees this machine's files as we do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes.client import ApiClient, Configuration, V1Pod

TOKEN = "token-of-the-tests"
DIGEST = "registry.example/nnunet@sha256:" + "ab" * 32
# The host name is a pod's own, so that nobody takes its runner for one of this host.
_AS_HOST = "import os, socket, sys; socket.sethostname(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])"
Status = dict[str, Any]


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cluster:
    """Pods by (namespace, name), as JSON objects.

    Attributes:
        hold: Called with a new pod; a status that it returns stays, and nothing is run. None runs it.
        refuse: Called with method and path; what it raises is the answer. requests: (method, path) of all that was
            asked.
        outage: No answer at all, connections are closed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pods: dict[tuple[str, str], dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.hold: Callable[[dict[str, Any]], Status | None] = lambda pod: None
        self.refuse: Callable[[str, str], None] = lambda method, path: None
        self.outage = False
        self.deletions: dict[str, int | None] = {}
        self._processes: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        self._reasons: dict[tuple[str, str], str] = {}
        self._threads: list[threading.Thread] = []
        self._version = 0
        self._lock = threading.RLock()

    # --- for tests ----------------------------------------------------------------------------------------------
    def pod(self, name: str) -> dict[str, Any]:
        """The one pod of this name."""
        with self._lock:
            return next(pod for (_, known), pod in self.pods.items() if known == name)

    def names(self) -> list[str]:
        with self._lock:
            return sorted(name for _, name in self.pods)

    def set_status(self, name: str, **status: Any) -> None:
        """What a kubelet or a controller would write."""
        with self._lock:
            self.pod(name)["status"].update(status)

    def kill(self, name: str, *, reason: str = "Error") -> None:
        """SIGKILL to the container's first process, as by the kernel; its status says ``reason``."""
        with self._lock:
            key = next(key for key in self.pods if key[1] == name)
            self._reasons[key] = reason
            self._processes[key].kill()

    def release(self, name: str) -> None:
        """Let a pod that was held have a node, and run it."""
        with self._lock:
            self._run(next(key for key in self.pods if key[1] == name))

    def put(self, namespace: str, body: dict[str, Any], status: Status | None) -> dict[str, Any]:
        """Create a pod, as the API server does it; run it unless ``status`` is given."""
        checked = _checked(body)
        key = (namespace, checked["metadata"]["name"])
        with self._lock:
            if key in self.pods:
                raise Refusal(409, f'pods "{key[1]}" already exists')
            self._version += 1
            checked["metadata"] |= {
                "namespace": namespace,
                "uid": f"uid-{self._version}",
                "resourceVersion": str(self._version),
                "creationTimestamp": datetime.now(UTC).isoformat(),
            }
            checked["status"] = {"phase": "Pending", **(status or {})}
            self.pods[key] = checked
            if status is None:
                self._run(key)
            return checked

    # --- the API ------------------------------------------------------------------------------------------------
    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        with self._lock:
            self.requests.append((method, path))
        self.refuse(method, path)
        parts = path.strip("/").split("/")
        if path == "/version/":
            return {"major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "", "buildDate": "",
                    "goVersion": "", "compiler": "", "platform": ""}  # fmt: skip
        if parts[-1] == "selfsubjectaccessreviews":
            return {**body, "status": {"allowed": self._allowed(body["spec"]["resourceAttributes"]["verb"])}}
        if parts[:3] != ["api", "v1", "namespaces"] or len(parts) < 5 or parts[4] != "pods":
            raise Refusal(404, f"the server could not find {path}")
        namespace = parts[3]
        if len(parts) == 5 and method == "POST":
            return self.put(namespace, body, self.hold(body))
        if len(parts) == 5 and method == "GET":
            wanted = dict(part.split("=", 1) for part in query.get("labelSelector", [""])[0].split(",") if part)
            unwanted = {part.removeprefix("status.phase!=") for part in query.get("fieldSelector", [""])[0].split(",") if part}
            with self._lock:
                found = [
                    pod
                    for (where, _), pod in self.pods.items()
                    if where == namespace and wanted.items() <= pod["metadata"]["labels"].items() and pod["status"]["phase"] not in unwanted
                ]
            return {"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": str(self._version)}, "items": found}
        key = (namespace, parts[5])
        with self._lock:
            if key not in self.pods:
                raise Refusal(404, f'pods "{key[1]}" not found')
            if method == "DELETE":
                grace = query.get("gracePeriodSeconds", [None])[0] or (body or {}).get("gracePeriodSeconds")
                self._delete(key, None if grace is None else int(grace))
                return {"kind": "Status", "status": "Success"}
            return self.pods[key]

    def _allowed(self, verb: str) -> bool:
        try:
            self.refuse(f"may {verb}", "")
        except Refusal:
            return False
        return True

    # --- the kubelet --------------------------------------------------------------------------------------------
    def _run(self, key: tuple[str, str]) -> None:
        pod = self.pods[key]
        (container,) = pod["spec"]["containers"]
        command = [*container["command"], *container["args"]]
        command[0] = sys.executable if command[0] == "python" else command[0]
        if os.geteuid() == 0:
            command = ["unshare", "--uts", sys.executable, "-c", _AS_HOST, key[1], *command]
        environment = {item["name"]: item.get("value", "") for item in container["env"]}
        output = open(self.folder / f"{key[1]}.out", "wb")  # noqa: SIM115 - the process has it for good
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={"PATH": os.environ["PATH"], **environment, "TMPDIR": str(self.folder)},
            start_new_session=True,
        )
        output.close()
        self._processes[key] = process
        pod["spec"]["nodeName"] = "node-1"
        pod["status"] = {
            "phase": "Running",
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
            "containerStatuses": [self._container(container, {"running": {"startedAt": _now()}})],
        }
        thread = threading.Thread(target=self._wait, args=(key, pod, container, process), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _wait(self, key: tuple[str, str], pod: dict[str, Any], container: dict[str, Any], process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        code = 128 - code if code < 0 else code
        message = (self.folder / f"{key[1]}.out").read_text(errors="replace")[-2048:]
        with self._lock:
            reason = self._reasons.get(key, "Error" if code else "Completed")
            ended = {"exitCode": code, "reason": reason, "finishedAt": _now(), "message": message if code else ""}
            pod["status"] |= {
                "phase": "Failed" if code else "Succeeded",
                "containerStatuses": [self._container(container, {"terminated": ended})],
            }
            if "deletionTimestamp" in pod["metadata"]:
                self.pods.pop(key, None)

    def _container(self, container: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": container["name"], "image": container["image"], "imageID": DIGEST, "ready": "running" in state, "restartCount": 0,
            "state": state,
        }  # fmt: skip

    def _delete(self, key: tuple[str, str], grace: int | None) -> None:
        pod, process = self.pods[key], self._processes.get(key)
        self.deletions[key[1]] = grace
        if process is None or process.poll() is not None:
            del self.pods[key]
            return
        seconds = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        pod["metadata"].setdefault("deletionTimestamp", _now())
        process.send_signal(signal.SIGTERM)

        def end() -> None:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()

        thread = threading.Thread(target=end, daemon=True)
        self._threads.append(thread)
        thread.start()

    def end(self) -> None:
        """Kill what runs; nothing is left behind."""
        with self._lock:
            for process in self._processes.values():
                if process.poll() is None:
                    process.kill()
        for thread in self._threads:
            thread.join(10)


@contextmanager
def running_cluster(folder: Path) -> Iterator[tuple[Cluster, Path]]:
    """A cluster and its kubeconfig."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    kubeconfig = folder / "kubeconfig.json"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "tests",
                "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
                "clusters": [{"name": "tests", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                "users": [{"name": "tests", "user": {"token": TOKEN}}],
            }
        )
    )
    try:
        yield cluster, kubeconfig
    finally:
        cluster.end()
        server.shutdown()
        server.server_close()
        thread.join(10)


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            if cluster.outage:
                self.close_connection = True
                return
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            url = urlsplit(self.path)
            try:
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    raise Refusal(401, "Unauthorized")
                code, answer = 200, cluster.answer(self.command, url.path, parse_qs(url.query), body)
            except Refusal as refusal:
                code = refusal.code
                answer = {"kind": "Status", "status": "Failure", "code": code, "message": str(refusal)}
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    """The pod if the official client's models know every field of it and miss none, else the API's refusal."""
    client = ApiClient(configuration=Configuration())
    try:
        pod = client._ApiClient__deserialize(body, V1Pod)  # type: ignore[attr-defined]
    except ValueError as error:
        raise Refusal(422, f"Pod is invalid: {error}") from error
    again = client.sanitize_for_serialization(pod)
    if again != body:
        raise Refusal(400, f"strict decoding error: {sorted(_leaves(body) ^ _leaves(again))}")
    return json.loads(json.dumps(again))


def _leaves(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        return {leaf for key, item in value.items() for leaf in _leaves(item, f"{path}.{key}")} or {path}
    if isinstance(value, list):
        return {leaf for index, item in enumerate(value) for leaf in _leaves(item, f"{path}[{index}]")} or {path}
    return {f"{path}={value!r}"}


def _now() -> str:
    return datetime.now(UTC).isoformat()
