"""Forms as clients, and those who mean harm, send them: whole ones arrive byte for byte, all others are refused and never crash."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from airflow_nnunet.prediction_api.form import read_form
from nnunet_jobs.contract.http.problems import Problem

HEAD = b'--b\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\n'
GOOD = HEAD + b"12345\r\n" + b'--b\r\nContent-Disposition: form-data; name="dataset"\r\n\r\n7\r\n--b--\r\n'


def read(
    body: bytes, folder: Path, *, kind: str = "multipart/form-data; boundary=b", chunk: int = 1000
) -> tuple[dict[str, str], list[Path]]:
    messages: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": body[at : at + chunk], "more_body": True} for at in range(0, len(body), chunk)]
        + [{"type": "http.request", "body": b"", "more_body": False}]
    )

    async def receive() -> dict[str, Any]:
        return next(messages)

    scope = {"type": "http", "headers": [(b"content-type", kind.encode())]}
    return asyncio.run(read_form(Request(scope, receive), folder))


@pytest.mark.parametrize("chunk", [1, 7, 100_000])
def test_files_and_fields_arrive_whole_however_they_are_cut(tmp_path: Path, chunk: int) -> None:
    contents = [os.urandom(3000), b"", b"\r\n--b\r\n--b--\r\n" * 20]
    request = httpx.Request(
        "POST", "http://x", data={"dataset": "7", "model": "ä"}, files=[("images", ("../;$(id)\n", content)) for content in contents]
    )
    fields, files = read(request.read(), tmp_path, kind=request.headers["content-type"], chunk=chunk)
    assert fields == {"dataset": "7", "model": "ä"}
    assert [path.read_bytes() for path in files] == contents
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.part", "1.part", "2.part"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "ends too early"),
        (GOOD[:-6], "ends too early"),
        (HEAD + b"123", "ends too early"),
        (b"nothing of the kind", "not multipart/form-data"),
        (GOOD.replace(b'"images"', b'"other"'), "go into the field 'images'"),
        (GOOD.replace(b'"dataset"\r\n\r\n7', b'"dataset"\r\n\r\n' + b"7" * 2000), "longer than 1024 bytes"),
        (GOOD.replace(b'"dataset"\r\n\r\n7', b'"dataset"\r\n\r\n\xff'), "not UTF-8"),
        (GOOD.replace(b"\r\n--b--", b'\r\n--b\r\nContent-Disposition: form-data; name="dataset"\r\n\r\n8\r\n--b--'), "more than once"),
        ((HEAD + b"\r\n") * 70 + b"--b--\r\n", "more than 64 files"),
        (HEAD.replace(b"form-data", b"x" * 100_000), "not multipart/form-data"),
    ],
)
def test_a_form_that_is_none_is_refused_with_the_reason(tmp_path: Path, body: bytes, says: str) -> None:
    with pytest.raises(Problem, match=says) as refused:
        read(body, tmp_path)
    assert refused.value.status == 422


def test_a_form_without_a_boundary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="boundary"):
        read(GOOD, tmp_path, kind="multipart/form-data")
    with pytest.raises(Problem):
        read(GOOD, tmp_path, kind=f"multipart/form-data; boundary={'b' * 1000}")


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_a_bent_form_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    body = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Problem):
        fields, files = read(bytes(body), tmp_path_factory.mktemp("form"), chunk=data.draw(st.integers(1, 200)))
        assert len(fields) + len(files) <= 2
        assert all(path.is_file() for path in files)
