"""docker/nginx/predictors.conf: a real nginx in front of two predictor servers, one of which is killed, ended, frozen or full."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from devtools.testbed import nginx
from devtools.testbed.serving import DATASET, ServerProcess, Service, make_image, make_workspace
from nnunet_jobs.predictor_server.settings import ServeSettings
from support.jobs import wait_for

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.skipif(nginx.missing() is not None, reason=str(nginx.missing())),
]
PROBLEM = "application/problem+json"
NAMES = ("predictor-1", "predictor-2")
SENT = 'nnunet_requests_total{status="200"}'
CLIENTS = 8


@dataclass(slots=True, kw_only=True)
class House:
    """nginx and its two servers. ``start`` brings a server (back); ``servers`` are those of now, by name."""

    front: Service
    folder: Path
    image: Path
    expected: bytes
    start: Callable[[str], ServerProcess]
    servers: dict[str, ServerProcess]

    def answered(self, name: str) -> float:
        """Predictions of one server since its start, asked through nginx."""
        return self.front.metric(SENT, page=f"/servers/{name}/metrics")

    def inside(self) -> float:
        """Requests in both servers, waiting ones included; a server that cannot be asked has none."""
        total = 0.0
        for server in self.servers.values():
            with contextlib.suppress(httpx.TransportError):
                total += server.metric("nnunet_requests_inside")
        return total


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("predictors")
    sockets = folder / "sockets"
    sockets.mkdir()
    workspace = make_workspace(folder / "work")
    image = make_image(folder / "scan_0000.nii.gz")
    nginx.lay_out(folder, [("/run/nnunet/predictors", str(sockets)), ("listen 127.0.0.1:8081", "listen unix:" + str(sockets / "health"))],
                  front="predictors.conf")  # fmt: skip
    shutil.rmtree(folder / "hosts")  # belong to the front of Airflow
    shutil.rmtree(folder / "streams")
    front = Service(uds=sockets / "front.sock")
    servers: dict[str, ServerProcess] = {}
    with contextlib.ExitStack() as stack:

        def start(name: str) -> ServerProcess:
            temporary = folder / f"{name}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)  # a killed one leaves its folder, a container's /tmp goes with it
            server = ServerProcess(workspace, folder / f"{name}.log", "--waiting", "8", temporary=temporary, uds=sockets / f"{name}.sock")
            servers[name] = stack.enter_context(server)
            return server

        for name in NAMES:
            start(name)
        expected = servers[NAMES[0]].predict([image]).content
        stack.enter_context(nginx.running(folder, listens=lambda: front.answers("/healthz")))
        yield House(front=front, folder=folder, image=image, expected=expected, start=start, servers=servers)
    assert not [path.name for path in folder.glob("tmp-*/*")], "nginx keeps no body"


@contextlib.contextmanager
def load(house: House) -> Iterator[list[httpx.Response]]:
    """Clients that ask all the time; all of their answers once the block is left."""
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(house.front.predict([house.image]))

    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask) for _ in range(CLIENTS)]
        try:
            wait_for(lambda: len(answers) >= CLIENTS, what="answers before the fault")
            yield answers
        finally:
            stop.set()
    for future in asking:
        future.result()


def require_all_right(answers: list[httpx.Response], house: House) -> None:
    assert {(answer.status_code, answer.content == house.expected) for answer in answers} == {(200, True)}, {
        (answer.status_code, answer.text[:200]) for answer in answers if answer.status_code != 200
    }


def test_limits_fit_the_servers_own() -> None:
    text = (nginx.DOCKER / "nginx" / "predictors.conf").read_text()
    fields = ServeSettings.__dataclass_fields__
    assert f"client_max_body_size {fields['upload_mib'].default}m;" in text
    read = re.search(r"proxy_read_timeout (\d+)s;", text)
    assert read is not None
    assert int(read[1]) > fields["timeout_s"].default


def test_requests_are_spread_over_both_and_the_bytes_are_those_of_one(house: House) -> None:
    before = {name: house.answered(name) for name in NAMES}
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda _: house.front.predict([house.image]), range(24)))
    require_all_right(answers, house)
    shares = [house.answered(name) - before[name] for name in NAMES]
    assert sum(shares) == 24
    assert min(shares) >= 4, shares


def test_a_server_killed_under_load_costs_no_request_and_comes_back(house: House) -> None:
    victim = house.servers["predictor-1"]
    with load(house) as answers:
        wait_for(lambda: victim.metric("nnunet_requests_inside") >= 2, what="work in the victim")
        victim.process.kill()
        victim.process.wait()
        count = len(answers)
        wait_for(lambda: len(answers) >= count + 2 * CLIENTS, what="answers without it")
        house.start("predictor-1")
        wait_for(lambda: house.answered("predictor-1") >= 3, what="requests for the one that came back")
    require_all_right(answers, house)


def test_a_server_that_is_told_to_stop_under_load_costs_no_request(house: House) -> None:
    leaving = house.servers["predictor-2"]
    with load(house) as answers:
        wait_for(lambda: leaving.metric("nnunet_requests_inside") >= 2, what="work in the one that leaves")
        leaving.process.send_signal(signal.SIGTERM)
        assert leaving.process.wait(timeout=60) == 0
        count = len(answers)
        wait_for(lambda: len(answers) >= count + CLIENTS, what="answers without it")
        house.start("predictor-2")
        wait_for(lambda: house.answered("predictor-2") >= 3, what="requests for the one that came back")
    require_all_right(answers, house)


def test_connections_that_a_stopping_server_closes_are_no_errors(house: House) -> None:
    """Short requests with pauses of their own leave idle connections between nginx and the servers, which a stop closes."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        require_all_right(list(pool.map(lambda _: house.front.predict([house.image]), range(CLIENTS))), house)
        leaving = house.servers["predictor-1"]
        leaving.process.send_signal(signal.SIGTERM)
        require_all_right(list(pool.map(lambda _: house.front.predict([house.image]), range(2 * CLIENTS))), house)
    assert leaving.process.wait(timeout=60) == 0
    house.start("predictor-1")


def test_fault_49_when_all_are_full_the_servers_own_word_comes_through(house: House) -> None:
    big = make_image(house.folder / "big_0000.nii.gz", repeat=3)
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: house.front.predict([big]), range(48)))
    states = [answer.status_code for answer in answers]
    assert set(states) == {200, 503}
    assert states.count(200) >= 16, "both were filled to their limit"
    for answer in answers:
        if answer.status_code == 503:
            assert answer.headers["content-type"] == PROBLEM
            assert re.search(r"ask again in (\d+) s", answer.json()["detail"])[1] == answer.headers["retry-after"]  # type: ignore[index]
            assert "as many requests as it takes" in answer.text
    require_all_right([house.front.predict([house.image])], house)


def test_when_none_is_there_it_says_when_to_come_back(house: House) -> None:
    for server in house.servers.values():
        server.process.send_signal(signal.SIGTERM)
    for server in house.servers.values():
        assert server.process.wait(timeout=60) == 0
    answer = house.front.predict([house.image])
    assert (answer.status_code, answer.headers["content-type"], answer.headers["retry-after"]) == (503, PROBLEM, "5")
    assert house.front.answers("/healthz"), "nginx itself is well"
    assert not house.front.answers("/readyz")
    for name in NAMES:
        house.start(name)
    require_all_right([house.front.predict([house.image])], house)


def test_a_body_over_the_limit_is_refused_before_it_is_sent(house: House) -> None:
    def request(length: int) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(house.front.uds))
            lines = (f"POST /v1/models/{DATASET}/predict HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=b")
            connection.sendall("\r\n".join((*lines, f"Content-Length: {length}", "", "")).encode())
            return connection.recv(4096)

    told = request((512 << 20) + 1)
    assert told.startswith(b"HTTP/1.1 413")
    assert PROBLEM.encode() in told


def test_a_slow_client_takes_no_place_in_a_server(house: House) -> None:
    """Forty clients stop in the middle of their body: more than both servers have places."""
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.nii.gz"\r\n\r\n' + house.image.read_bytes()[:1000]
    lines = (f"POST /v1/models/{DATASET}/predict HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=b")
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            slow = stack.enter_context(socket.socket(socket.AF_UNIX))
            slow.connect(str(house.front.uds))
            slow.sendall("\r\n".join((*lines, "Content-Length: 90000", "", "")).encode() + head)
        require_all_right([house.front.predict([house.image]) for _ in range(3)], house)
        assert house.inside() == 0


def test_fault_50_a_client_that_goes_is_told_to_the_server(house: House) -> None:
    gone = [server.metric('nnunet_requests_total{status="499"}') for server in house.servers.values()]
    body = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.nii.gz"\r\n\r\n'
    body += make_image(house.folder / "long_0000.nii.gz", repeat=8).read_bytes() + b"\r\n--b--\r\n"
    lines = (f"POST /v1/models/{DATASET}/predict HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=b")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(house.front.uds))
        connection.sendall("\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode() + body)
        wait_for(lambda: house.inside() == 1, what="the request in a server")
    wait_for(
        lambda: sum(s.metric('nnunet_requests_total{status="499"}') for s in house.servers.values()) == sum(gone) + 1,
        what="the server to hear of it",
    )
    wait_for(lambda: house.inside() == 0, what="its place to be free")


def test_a_servers_numbers_and_nothing_else_of_the_folder_can_be_asked(house: House) -> None:
    with house.front.client() as client:
        assert "nnunet_requests_inside" in client.get("/servers/predictor-2/metrics").text
        assert client.get("/servers/predictor-1/readyz").text == "ready\n"
        for path in ("/metrics", "/servers/predictor-1/v1/models", "/servers/..%2fpredictor-1/metrics", "/servers/front/metrics"):
            assert client.get(path).status_code == 404, path
        assert client.get("/servers/predictor-9/readyz").status_code == 503


def test_the_logs_hold_no_file_names_and_nginxs_no_queries(house: House) -> None:
    with house.front.client() as client:
        files = {"images": ("DOE^JANE.nii.gz", house.image.read_bytes())}
        assert client.post(f"/v1/models/{DATASET}/predict", files=files).status_code == 200
        assert client.post(f"/v1/models/{DATASET}/predict?model=ROE%5EJANE", files=files).status_code == 404
    logs = {path.name: path.read_text() for path in (house.folder / "log", *(house.folder / f"{name}.log" for name in NAMES))}
    assert not [name for name, text in logs.items() if "DOE" in text]
    assert "ROE" not in logs["log"]
    assert f"/v1/models/{DATASET}/predict" in logs["log"]
