"""nginx's files of docker/, served by a real nginx in front of a server that says what it was asked."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from devtools.testbed import nginx


class Behind(BaseHTTPRequestHandler):
    """Answers every request with what arrived."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        body = json.dumps({"path": self.path, "headers": {name.lower(): value for name, value in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Powered-By", "secret-server 1.0")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Addresses of a running nginx."""

    plain: str
    tls: str
    hosts: str
    redis: tuple[str, int]
    certificate: Path
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def certificate(folder: Path) -> None:
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt"),
        ],
        check=True, capture_output=True,
    )  # fmt: skip


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """All of nginx's files at once, moved to free ports and to servers of the test; nothing else in them is changed."""
    if not (shutil.which("nginx") and shutil.which("openssl") and nginx.STREAM_MODULE.is_file()):
        pytest.skip("needs nginx with its stream module, and openssl (Debian: nginx-light, libnginx-mod-stream, openssl)")
    folder = tmp_path_factory.mktemp("front")
    certificate(folder)
    behind = ThreadingHTTPServer(("127.0.0.1", 0), Behind)
    threading.Thread(target=behind.serve_forever, daemon=True).start()
    redis = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=echo, args=(redis,), daemon=True).start()
    ports = {"8080": free_port(), "8081": free_port(), "8444": free_port(), "6380": free_port()}
    tls_port = free_port()
    changes = [
        ("http://api-server:8080", f"http://127.0.0.1:{behind.server_address[1]}"),
        ("redis:6379", f"127.0.0.1:{redis.getsockname()[1]}"),
        ("listen 127.0.0.1:8081", f"listen 127.0.0.1:{ports['8081']}"),
        *((f"listen {number}", f"listen 127.0.0.1:{port}") for number, port in ports.items()),
    ]
    nginx.lay_out(folder, changes, front="plain.conf")
    # Both kinds of front at once; a deployment has one of them.
    (folder / "hosts" / "tls-front.conf").write_text(
        (folder / "tls.conf").read_text().replace(f"listen 127.0.0.1:{ports['8080']} ssl", f"listen 127.0.0.1:{tls_port} ssl")
    )
    (folder / "modules-enabled" / "stream.conf").write_text(f"load_module {nginx.STREAM_MODULE};\n")
    try:
        with nginx.running(folder, listens=lambda: all(map(listens, (*ports.values(), tls_port)))):
            yield Front(
                plain=f"http://127.0.0.1:{ports['8080']}",
                tls=f"https://localhost:{tls_port}",
                hosts=f"https://localhost:{ports['8444']}",
                redis=("127.0.0.1", ports["6380"]),
                certificate=folder / "tls.crt",
                log=folder / "log",
            )
    finally:
        behind.shutdown()
        behind.server_close()
        redis.close()


def echo(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"redis says " + connection.recv(100))


@pytest.fixture
def client(front: Front) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=str(front.certificate))
    with httpx.Client(verify=context, trust_env=False, timeout=20) as made:
        yield made


def test_pages_come_through_with_headers_that_protect_the_browser(front: Front, client: httpx.Client) -> None:
    answer = client.get(f"{front.plain}/dags?token=abc", headers={"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"})
    assert answer.status_code == 200
    asked = answer.json()
    assert asked["path"] == "/dags?token=abc"
    assert asked["headers"]["x-forwarded-for"] == "127.0.0.1", "a client must not choose its own address"
    assert asked["headers"]["x-forwarded-proto"] == "http"
    assert asked["headers"]["host"] == front.plain.removeprefix("http://")
    assert answer.headers["server"] == "nginx"
    assert "x-powered-by" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert "strict-transport-security" not in answer.headers
    assert "abc" not in front.log.read_text(), "tokens in addresses are not for the log"


def test_tls_front_has_the_same_headers_and_one_more(front: Front, client: httpx.Client) -> None:
    plain, tls = client.get(f"{front.plain}/"), client.get(f"{front.tls}/")
    assert tls.json()["headers"]["x-forwarded-proto"] == "https"
    kept = {"date", "connection", "content-length"}
    more = {name: value for name, value in tls.headers.items() if name not in plain.headers}
    assert more == {"strict-transport-security": "max-age=31536000"}
    assert {n: v for n, v in plain.headers.items() if n not in kept} == {n: v for n, v in tls.headers.items() if n not in {*kept, *more}}


@pytest.mark.parametrize("path", ["/execution/", "/execution/health", "//execution/health", "/x/../execution/", "/%65xecution/health"])
def test_the_tasks_own_interface_is_not_for_people(front: Front, client: httpx.Client, path: str) -> None:
    with socket.create_connection(("127.0.0.1", int(front.plain.rsplit(":", 1)[1])), timeout=20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 404")


def test_workers_of_other_hosts_get_the_tasks_interface_and_nothing_else(front: Front, client: httpx.Client) -> None:
    assert client.get(f"{front.hosts}/execution/health").json()["path"] == "/execution/health"
    for path in ("/", "/api/v2/dags", "/auth/token", "/execution/../api/v2/dags"):
        assert client.get(f"{front.hosts}{path}").status_code == 404
    plain = client.get(front.hosts.replace("https", "http") + "/execution/health")
    assert plain.status_code == 400, "only with TLS"


def test_redis_is_reached_by_tls_alone(front: Front) -> None:
    context = ssl.create_default_context(cafile=str(front.certificate))
    with (
        socket.create_connection(front.redis, timeout=20) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"PING")
        assert connection.recv(100) == b"redis says PING"
    with socket.create_connection(front.redis, timeout=20) as raw:
        raw.sendall(b"PING\r\n\r\n")
        assert b"redis says" not in raw.recv(100)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(str(front.certificate))
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_3
    with socket.create_connection(front.redis, timeout=20) as raw, old.wrap_socket(raw, server_hostname="localhost") as connection:
        assert connection.version() == "TLSv1.3"


def test_a_large_body_is_refused_before_airflow_sees_it(front: Front, client: httpx.Client) -> None:
    assert client.post(f"{front.plain}/api/v2/variables", content=b"x" * (1 << 20)).status_code == 200
    assert client.post(f"{front.plain}/api/v2/variables", content=b"x" * (3 << 20)).status_code == 413
    assert client.post(f"{front.plain}/nnunet-api/predictions", content=b"x" * (3 << 20)).status_code == 200, "images are larger"


def test_passwords_are_guessed_slowly_while_pages_stay_quick(front: Front, client: httpx.Client) -> None:
    codes = [
        client.post(f"{front.plain}/auth/token", json={"username": "admin", "password": str(guess)}).status_code for guess in range(40)
    ]
    assert codes[:10] == [200] * 10
    assert codes.count(429) >= 25
    assert {client.get(f"{front.plain}/auth/login").status_code for _ in range(40)} == {200}
    assert {client.post(f"{front.plain}/api/v2/dags").status_code for _ in range(40)} == {200}


def test_health_is_told_inside_alone(front: Front, client: httpx.Client) -> None:
    assert client.get(f"{front.plain}/front/health").json()["path"] == "/front/health", "passed on, as any other page"
