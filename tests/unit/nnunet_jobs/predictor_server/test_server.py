"""The predictor server as its clients see it: the batch's bytes, errors that say what is wrong, and an orderly end."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from devtools.testbed.prediction import job_dir
from devtools.testbed.serving import DATASET, FULL, ServerProcess, make_image, make_model, make_workspace
from nnunet_jobs import processes
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.storage.files import read_json, repoint, sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices.leases import Ledger
from nnunet_jobs.steps.predict import run
from support.batches import ABORT_ITK, SUPPORT, poison
from support.jobs import wait_for, wait_gone

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("serving") / "work")


@pytest.fixture(scope="module")
def folder(home: Workspace) -> Path:
    return Path(home.raw).parent.parent


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    (folder / "images").mkdir()
    return make_image(folder / "images" / "scan_0000.nii.gz")


@pytest.fixture(scope="module")
def server(home: Workspace, folder: Path) -> Iterator[ServerProcess]:
    with ServerProcess(home, folder / "server.log", "--waiting", "3", "--upload-mib", "1", temporary=folder / "tmp") as server:
        yield server
    assert server.process.returncode == 0
    assert not list((folder / "tmp").iterdir())


def test_the_answer_is_the_batchs_file_byte_for_byte(server: ServerProcess, home: Workspace, image: Path) -> None:
    output = Path(home.output_roots[0]) / "batch"
    run(
        PredictParams(dataset=DATASET, cases=str(image.parent), output=str(output)),
        StepContext(workspace=home, job=job_dir(home), cpus=1),
    )
    answer = server.predict([image])
    assert answer.status_code == 200, answer.text
    assert answer.content == (output / "scan.nii.gz").read_bytes()
    assert answer.headers["content-type"] == "application/gzip"
    assert answer.headers["x-nnunet-model"] == "m1"
    described = server.predict([image], accept="application/json").json()
    assert described["sha256"] == sha256_file(output / "scan.nii.gz")
    assert set(described["volumes_ml"]) == {"head", "tail"}
    assert described["flags"] == read_json(output / "predictions.json")["cases"]["scan"]["flags"]
    assert not server.leftovers()


def test_a_cascade_and_other_models_are_asked_for_by_name(server: ServerProcess, home: Workspace, image: Path) -> None:
    make_model(home, "m9", seed=9, configuration=FULL, promote=False)
    assert server.predict([image], model="m9").headers["x-nnunet-model"] == "m9"
    assert server.predict([image]).headers["x-nnunet-model"] == "m1"
    with server.client() as client:
        assert {item["model"] for item in client.get("/v1/models").json()["warm"]} >= {"m1", "m9"}
        described = client.get(f"/v1/models/{DATASET}").json()
    assert (described["channels"], described["file_ending"], described["labels"]) == (["MRI"], ".nii.gz", {"head": [1], "tail": [2]})


def test_wrong_requests_are_told_what_is_wrong(server: ServerProcess, image: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(image.read_bytes()[:5000])
    text = tmp_path / "text.nii.gz"
    text.write_text("this is no image")
    large = tmp_path / "large.nii.gz"
    large.write_bytes(image.read_bytes() + os.urandom(2 << 20))
    for files, status, words in (
        ([cut], 422, "ends early"),
        ([text], 415, ".nii.gz"),
        ([image, image], 422, "has 2 files; the model needs 1"),
        ([large], 413, "larger than 1 MiB"),
    ):
        answer = server.predict(files)
        assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text
        assert words in answer.json()["detail"]
    with server.client() as client:
        assert client.post(f"/v1/models/{DATASET}/predict", content=b"x").status_code == 415
        assert client.post("/v1/models/999/predict", files={"images": image.read_bytes()}).status_code == 404
        missing = client.post(f"/v1/models/{DATASET}/predict?model=..%2F..", files={"images": image.read_bytes()})
        assert missing.status_code == 404
        assert str(server.workspace.raw) not in missing.text
        unknown = client.post(f"/v1/models/{DATASET}/predict", files={"image": image.read_bytes()})
        assert (unknown.status_code, "unknown: image" in unknown.json()["detail"]) == (422, True)
        assert client.get("/nowhere").headers["content-type"] == PROBLEM
    assert not server.leftovers()


def test_fault_57_a_spacing_that_cannot_be_is_the_images_fault(server: ServerProcess, image: Path, tmp_path: Path) -> None:
    """Resampled to the model's spacing, nothing would be left of the first, and no memory holds the last two."""
    for spacing, words in ((1e-30, "nothing is left"), (0.02, "nothing is left"), (1e4, "MiB of the"), (1e30, "MiB of the")):
        bent = bytearray(gzip.decompress(image.read_bytes()))
        bent[80:92] = struct.pack("<3f", spacing, spacing, spacing)
        bent[252:256] = bytes(4)  # no qform and no sform, or they would say something else
        path = tmp_path / f"{spacing}_0000.nii.gz"
        path.write_bytes(gzip.compress(bytes(bent), 1))
        answer = server.predict([path])
        assert (answer.status_code, words in answer.json()["detail"]) == (422, True), f"{spacing}: {answer.text}"
    assert server.predict([image]).status_code == 200


def test_fault_57_what_nnunets_reader_would_refuse_is_the_images_fault(server: ServerProcess, image: Path, tmp_path: Path) -> None:
    bent = bytearray(gzip.decompress(image.read_bytes()))
    struct.pack_into("<2h", bent, 252, 0, 1)  # only the sform, whose axes are skewed
    struct.pack_into("<12f", bent, 280, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 0)
    path = tmp_path / "skewed_0000.nii.gz"
    path.write_bytes(gzip.compress(bytes(bent), 1))
    answer = server.predict([path])
    assert (answer.status_code, "axes that are not orthogonal" in answer.text, str(server.temporary) in answer.text) == (422, True, False)


def test_fault_44_an_image_that_kills_its_reader_leaves_the_server_alive(home: Workspace, image: Path, tmp_path: Path) -> None:
    deadly = tmp_path / "deadly_0000.nii.gz"
    deadly.write_bytes(image.read_bytes())
    poison(deadly, ABORT_ITK)
    large = make_image(tmp_path / "large_0000.nii.gz", repeat=12)
    with ServerProcess(home, tmp_path / "log", "--image-mib", "4", temporary=tmp_path / "tmp", hooks=SUPPORT / "itk_hooks") as server:
        for _ in range(2):
            answer = server.predict([deadly])
            assert (answer.status_code, "reader_crashed" in answer.json()["detail"]) == (422, True), answer.text
            assert server.predict([image]).status_code == 200
        answer = server.predict([large])
        assert (answer.status_code, "4 are allowed (--image-mib)" in answer.json()["detail"]) == (413, True), answer.text
        readers = processes.descendants(server.process.pid)
        assert len(readers) == 1
        assert not server.leftovers()
    wait_gone(*readers)


def test_a_body_that_grows_without_a_length_is_stopped(server: ServerProcess) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.nii.gz"\r\n\r\n'
        for _ in range(64):
            yield b"\x1f\x8b" + b"x" * (64 << 10)

    with server.client() as client:
        answer = client.post(
            f"/v1/models/{DATASET}/predict", content=endless(), headers={"content-type": "multipart/form-data; boundary=b"}
        )
    assert answer.status_code == 413
    assert not server.leftovers()


def test_fault_53_a_files_name_is_never_used(server: ServerProcess, image: Path, tmp_path: Path) -> None:
    with server.client() as client:
        for name in (";$(touch pwned)`id`", "../../etc/passwd", "a\nb", "x" * 4000):
            answer = client.post(f"/v1/models/{DATASET}/predict", files={"images": (name, image.read_bytes())})
            assert answer.status_code == 200
    assert "pwned" not in server.log.read_text()
    assert not server.leftovers()


def test_fault_49_a_full_server_says_when_to_come_back(server: ServerProcess, image: Path) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: server.predict([image]), range(12)))
    states = sorted(answer.status_code for answer in answers)
    assert set(states) == {200, 503}
    assert states.count(200) >= 3
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["content-type"] == PROBLEM
    assert server.predict([image]).status_code == 200


def test_fault_50_a_client_that_goes_leaves_nothing_behind(server: ServerProcess, image: Path, tmp_path: Path) -> None:
    address = httpx.URL(server.url)
    body = image.read_bytes()
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.nii.gz"\r\n\r\n'
    whole = head + make_image(tmp_path / "long_0000.nii.gz", repeat=6).read_bytes() + b"\r\n--b--\r\n"

    def request(length: int) -> bytes:
        lines = (f"POST /v1/models/{DATASET}/predict HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=b")
        return "\r\n".join((*lines, f"Content-Length: {length}", "", "")).encode()

    before = server.metric('nnunet_requests_total{status="499"}')
    for sent in (head, head + body[:1000], whole):  # in the middle of a header, of a file, and when all is there
        with socket.create_connection((address.host, int(address.port or 0))) as connection:
            connection.sendall(request(len(whole)) + sent)
            wait_for(lambda: server.metric("nnunet_requests_inside") == 1, what="the request")
    wait_for(lambda: server.metric('nnunet_requests_total{status="499"}') == before + 3, what="the server to notice")
    wait_for(lambda: server.metric("nnunet_requests_inside") == 0, what="its places to be free")
    assert not server.leftovers()
    assert server.predict([image]).status_code == 200


def test_a_promotion_takes_over_without_dropping_a_request(server: ServerProcess, home: Workspace, image: Path) -> None:
    root = make_model(home, "m2", seed=2, promote=False)
    seen: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = server.predict([image])
            seen.append((answer.status_code, answer.headers.get("x-nnunet-model", "")))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        wait_for(lambda: len(seen) >= 2, what="answers before the promotion")
        repoint(home.champion_link(DATASET), root)
        wait_for(lambda: seen[-1][1] == "m2", what="answers of the new model")
    finally:
        stop.set()
        asking.join()
        repoint(home.champion_link(DATASET), home.model_root("m1") / DATASET)
    assert {status for status, _ in seen} == {200}
    models = [model for _, model in seen]
    assert models == sorted(models), "once the new model answers, the old one does not"


def test_fault_67_a_promoted_card_without_a_field_is_said_by_readyz_and_the_server_goes_on(
    server: ServerProcess, home: Workspace, image: Path
) -> None:
    root = make_model(home, "m7", seed=7, promote=False)
    card = read_json(root / "model.json")

    def ready() -> tuple[int, str]:
        with server.client() as client:
            answer = client.get("/readyz")
        return answer.status_code, answer.text

    wait_for(lambda: server.predict([image]).headers["x-nnunet-model"] == "m1", what="the promoted model")
    try:
        write_json(root / "model.json", {name: value for name, value in card.items() if name != "selection"})
        repoint(home.champion_link(DATASET), root)
        wait_for(lambda: "follow promotions" in ready()[1], what="what /readyz says")
        assert ready()[0] == 200, "the earlier model answers"
        assert server.predict([image]).headers["x-nnunet-model"] == "m1"
        write_json(root / "model.json", card)
        wait_for(lambda: server.predict([image]).headers["x-nnunet-model"] == "m7", what="the new model")
        wait_for(lambda: ready() == (200, "ready\n"), what="/readyz without the fault")
    finally:
        repoint(home.champion_link(DATASET), home.model_root("m1") / DATASET)
    wait_for(lambda: server.predict([image]).headers["x-nnunet-model"] == "m1", what="the first model")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Host": "evil.example:8600"}, 400),
        ({"Host": "127.0.0.1.evil.example"}, 400),
        ({"Host": "localhost@evil.example"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8600"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Host": "127.0.0.1:8600", "Origin": "http://127.0.0.1:8600", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_fault_76_a_page_of_another_site_is_refused(server: ServerProcess, image: Path, headers: dict[str, str], status: int) -> None:
    before = server.metric('nnunet_phase_seconds_count{phase="network"}')
    with server.client() as client:
        assert client.get("/v1/models", headers=headers).status_code == status
        answer = client.post(f"/v1/models/{DATASET}/predict", headers=headers, files={"images": ("a.nii.gz", image.read_bytes())})
    assert answer.status_code == status
    assert (server.metric('nnunet_phase_seconds_count{phase="network"}') == before) == (status != 200), "no GPU was spent"
    if status != 200:
        assert answer.headers["content-type"] == PROBLEM
        assert "--allow-host" in answer.json()["detail"]


def test_it_holds_a_lease_and_stops_in_good_order(home: Workspace, folder: Path, tmp_path: Path) -> None:
    long = make_image(tmp_path / "long_0000.nii.gz", repeat=6)
    uds = tmp_path / "server.sock"
    with ServerProcess(home, tmp_path / "server.log", temporary=tmp_path / "tmp", uds=uds) as server:
        owners = [holder.owner for holder in Ledger(home.leases).holders()]
        assert f"predictor-server-{socket.gethostname()}-{server.process.pid}" in owners
        with ThreadPoolExecutor(1) as pool:
            last = pool.submit(server.predict, [long])
            wait_for(lambda: server.metric("nnunet_requests_inside") == 1, what="the last request")
            server.process.send_signal(signal.SIGTERM)
            assert last.result().status_code == 200
        assert server.process.wait(timeout=60) == 0
    assert not uds.exists()
    assert not list((tmp_path / "tmp").iterdir())
    assert f"predictor-server-{socket.gethostname()}-{server.process.pid}" not in [holder.owner for holder in Ledger(home.leases).holders()]


def test_a_socket_belongs_to_one_server(home: Workspace, image: Path, tmp_path: Path) -> None:
    uds = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(uds))  # never removed, as by a server that was killed
    with ServerProcess(home, tmp_path / "server.log", "--allow-host", "front.example", temporary=tmp_path / "tmp", uds=uds) as server:
        with server.client() as client:
            hosts = {"server": 200, "x": 200, "localhost": 200, "front.example:8443": 200, "evil.example": 400}
            assert {host: client.get("/healthz", headers={"Host": host}).status_code for host in hosts} == hosts
            allowed = {"Origin": "https://front.example", "Sec-Fetch-Site": "same-site"}
            assert client.get("/healthz", headers=allowed).status_code == 200
        command = [sys.executable, "-m", "nnunet_jobs", "serve", "--workspace", str(Path(home.raw).parent), "--cpu-slots", "4"]
        second = subprocess.run([*command, "--uds", str(uds)], capture_output=True, text=True, timeout=60, check=False)
        assert (second.returncode, "another server listens there" in second.stderr) == (3, True)
        assert server.predict([image]).status_code == 200
        # the next server of a rolling update: the first one ends and leaves it alone
        uds.unlink()
        with ServerProcess(home, tmp_path / "next.log", temporary=tmp_path / "next", uds=uds) as following:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=60) == 0
            assert following.predict([image]).status_code == 200
    assert not uds.exists()
    uds.write_text("a file")
    third = subprocess.run([*command, "--uds", str(uds)], capture_output=True, text=True, timeout=60, check=False)
    assert (third.returncode, "not a socket" in third.stderr, uds.read_text()) == (3, True, "a file")


def test_a_request_has_a_time_limit(home: Workspace, image: Path, tmp_path: Path) -> None:
    with ServerProcess(home, tmp_path / "server.log", "--timeout-s", "0.02", temporary=tmp_path / "tmp") as server:
        answer = server.predict([image])
        assert (answer.status_code, answer.headers["content-type"]) == (504, PROBLEM)
        wait_for(lambda: server.metric("nnunet_requests_inside") == 0, what="its place to be free")
        assert not server.leftovers()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--host", "0.0.0.0", "loopback"), ("--waiting", "0", "waiting=0"), ("--allow-host", "*", "allow_hosts"), ("--model", "4", "model=")],
)
def test_what_cannot_be_served_is_refused(home: Workspace, option: str, value: str, words: str) -> None:
    command = [sys.executable, "-m", "nnunet_jobs", "serve", "--workspace", str(Path(home.raw).parent), option, value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert words in done.stderr
