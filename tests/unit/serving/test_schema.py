"""Requests made up from the server's own OpenAPI document, and images made up of anything: never a crash, always the documented answer."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.serving import DATASET, ServerProcess, make_image, make_workspace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
quietly = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize="FUZZ_EXAMPLES" not in os.environ
)


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
    for operation in operations:

        @quietly
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            case.call_and_validate(base_url=server.url)

        ask()


@quietly
@given(data=st.data())
def test_fault_57_an_image_of_random_bytes_is_refused_and_the_server_lives(
    server: ServerProcess, image: bytes, data: st.DataObject
) -> None:
    """The header is bent at random places, the voxels are cut or grown, the whole packed anew: it is read to its end."""
    bent = bytearray(image)
    for _ in range(data.draw(st.integers(1, 12))):
        place = data.draw(st.integers(0, 351))
        bent[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        struct.pack_into("<8h", bent, 40, *data.draw(st.lists(st.integers(-32768, 32767), min_size=8, max_size=8)))
    body = gzip.compress(bytes(bent[: data.draw(st.integers(0, len(bent)))]) if data.draw(st.booleans()) else bytes(bent), 1)
    with server.client() as client:
        answer = client.post(f"/v1/models/{DATASET}/predict", files={"images": ("x.nii.gz", body)})
        assert answer.status_code in (200, 413, 415, 422), answer.text
        assert client.get("/healthz").status_code == 200
