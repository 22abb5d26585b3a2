"""A reverse proxy on loopback that injects the faults of real networks: errors, cut answers, answers that never come."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests


@dataclass(frozen=True, kw_only=True)
class Act:
    """What to do with one request instead of passing it on.

    Attributes:
        status: Status of an answer of its own; None when the request is passed on.
        headers: Headers of that answer.
        body: Body of that answer.
        cut: Pass it on, then close the connection in the middle of the answer.
        silent: Without saying how long it would have been.
        hang: Hold the request until the proxy is released.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: bool = False
    silent: bool = False
    hang: bool = False


Rule = Callable[[str, int], Act | None]


class Proxy:
    """Passes requests on to ``target`` unless ``rule`` says otherwise. A rule gets the request's path and its number for that kind.

    With ``certificate``, a PEM file with its key, it speaks TLS; Debian's Orthanc dies at the first handshake when told to do so itself.

    Attributes:
        paths: Paths of all requests so far, in order, without queries' texts.
    """

    def __init__(self, target: str, rule: Rule = lambda path, number: None, *, certificate: Path | None = None) -> None:
        self.target = target
        self.rule = rule
        self.paths: list[str] = []
        self.released = threading.Event()
        self.waiting = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        if certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
            # The handshake belongs to the request's thread: a client that hangs up in it must not stop the others.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def note(self, path: str) -> int:
        """Count a request; returns its number, from 1, among those that ask for an instance or among the others."""
        with self._lock:
            self.paths.append(path)
            return sum(is_instance(other) == is_instance(path) for other in self.paths)

    @property
    def fetched(self) -> int:
        """Requests for an instance so far."""
        with self._lock:
            return sum(is_instance(path) for path in self.paths)


def is_instance(path: str) -> bool:
    """Whether a path retrieves one instance."""
    return "/instances/" in path


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                super().handle()

        def do_GET(self) -> None:
            self._serve("GET", None)

        def do_POST(self) -> None:
            self._serve("POST", self._body())

        def log_message(self, *args: object) -> None:
            """Say nothing."""

        def _serve(self, method: str, body: bytes | None) -> None:
            act = proxy.rule(self.path.partition("?")[0], proxy.note(self.path.partition("?")[0])) or Act()
            if act.hang:
                proxy.waiting.release()
                proxy.released.wait(60)
                self.close_connection = True
                return
            if act.status:
                self._answer(act.status, act.headers, act.body)
                return
            passed = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection", "transfer-encoding")
            }
            try:
                found = requests.request(method, proxy.target + self.path, data=body, headers=passed, timeout=60)
            except requests.ConnectionError:
                self.close_connection = True
                return
            headers = {"Content-Type": found.headers.get("Content-Type", "text/plain")}
            if act.cut or act.silent:
                self._cut(found, silent=act.silent)
            else:
                self._answer(found.status_code, headers, found.content)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _cut(self, found: requests.Response, *, silent: bool) -> None:
            self.send_response(found.status_code)
            self.send_header("Content-Type", found.headers["Content-Type"])
            self.send_header("Connection", "close") if silent else self.send_header("Content-Length", str(len(found.content)))
            self.end_headers()
            self.wfile.write(found.content[: len(found.content) // 2])
            self.close_connection = True

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    return Handler
