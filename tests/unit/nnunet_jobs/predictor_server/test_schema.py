"""Requests made up from the server's own OpenAPI document, and images made up of anything: never a crash, always the documented answer."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from devtools.testbed.serving import DATASET, ServerProcess, make_image, make_workspace
from support.fuzzing import quietly, rounds
from support.jobs import wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("schema")
    workspace = make_workspace(folder / "work")
    with ServerProcess(workspace, folder / "server.log", "--image-mib", "64", temporary=folder / "tmp") as server:
        yield server
        assert not server.leftovers()
    assert server.process.returncode == 0


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = make_image(tmp_path_factory.mktemp("image") / "scan_0000.nii.gz")
    return gzip.decompress(path.read_bytes())


def test_fault_56_requests_from_the_schema_are_answered_as_documented(server: ServerProcess) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/models/{dataset}/predict", "/v1/models", "/healthz", "/readyz", "/metrics"}
    for _ in rounds():
        for operation in operations:

            @quietly
            @given(case=operation.as_strategy())
            def ask(case: Any) -> None:
                # which bytes are an image, and of which dataset there is a model, the schema cannot say
                case.call_and_validate(base_url=server.url, excluded_checks=[positive_data_acceptance] if case.path_parameters else [])

            ask()


def test_fault_57_an_image_of_random_bytes_is_refused_and_the_server_lives(server: ServerProcess, image: bytes) -> None:
    """The header is bent at random places, the voxels are cut or grown, the whole packed anew: it is read to its end."""

    @quietly
    @given(data=st.data())
    def send(data: st.DataObject) -> None:
        bent = bytearray(image)
        for _ in range(data.draw(st.integers(1, 12))):
            place = data.draw(st.integers(0, 351))
            bent[place] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            struct.pack_into("<8h", bent, 40, *data.draw(st.lists(st.integers(-32768, 32767), min_size=8, max_size=8)))
        body = gzip.compress(bytes(bent[: data.draw(st.integers(0, len(bent)))]) if data.draw(st.booleans()) else bytes(bent), 1)
        with server.client() as client:
            answer = client.post(f"/v1/models/{DATASET}/predict", files={"images": ("x.nii.gz", body)})
            require_documented(answer, server)

    for _ in rounds():
        send()


PIECES = st.sampled_from(
    [
        b"--b\r\n", b"--b--\r\n", b"\r\n", b"\n", b"--", b":", b";", b'"', b"\0", b"\xff", b"\x1f\x8b", b"a" * 5000, b'name="images"',
        b"filename*=UTF-8''%ff", b"Content-Disposition: form-data\r\n", b"Content-Type: text/plain; charset=utf-7\r\n\r\n",
        b"Content-Transfer-Encoding: base64\r\n",
    ]
)  # fmt: skip
TYPES = st.sampled_from(
    [
        "multipart/form-data; boundary=b", "multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary="b',
        "multipart/form-data; boundary=b; charset=nonsense", "multipart/form-data; charset=utf-16; boundary=b", "multipart/form-data;;=;",
        "application/x-www-form-urlencoded", "multipart/mixed; boundary=b", f"multipart/form-data; boundary={'b' * 3000}",
    ]
)  # fmt: skip


def test_fault_57_a_form_of_random_bytes_is_refused_and_leaves_nothing(server: ServerProcess, image: bytes) -> None:
    """A right form with pieces cut, put in, and bytes changed anywhere, in its lines too; and what is no form at all."""
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.nii.gz"\r\nContent-Type: application/gzip\r\n\r\n'
    right = head + gzip.compress(image, 1)[:2000] + b"\r\n--b--\r\n"

    @quietly
    @given(data=st.data())
    def send(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            body = bytearray(right)
            for _ in range(data.draw(st.integers(1, 8))):
                place = data.draw(st.integers(0, len(head) + 40) | st.integers(0, len(right)))
                body[place : place + data.draw(st.integers(0, 30))] = data.draw(PIECES | st.binary(max_size=20))
        else:
            body = bytearray(b"".join(data.draw(st.lists(PIECES | st.binary(max_size=50), max_size=20))))
        with server.client() as client:
            answer = client.post(f"/v1/models/{DATASET}/predict", content=bytes(body), headers={"Content-Type": data.draw(TYPES)})
        require_documented(answer, server)

    for _ in rounds():
        send()
    wait_for(lambda: server.metric("nnunet_requests_inside") == 0, what="its places to be free")
    assert not server.leftovers()


def require_documented(answer: httpx.Response, server: ServerProcess) -> None:
    assert answer.status_code in (200, 413, 415, 422), answer.text
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/problem+json"
    assert server.answers("/healthz")
