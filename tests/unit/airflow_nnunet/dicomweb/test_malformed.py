"""Archives whose answers have another form than DICOM JSON, or that turn down a page after the last one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_nnunet.dicomweb.hook import DicomWebHook
from airflow_nnunet.jobs.exceptions import ArchiveRefused
from airflow_nnunet.jobs.retry import NnunetRetryPolicy
from support.stub_archive import StubArchive

STUDIES = {f"1.2.{number}": 3 for number in range(1, 8)}


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubArchive]:
    with StubArchive(studies=STUDIES) as server:
        monkeypatch.setenv("AIRFLOW_CONN_ODD", server.connection())
        yield server


def answering(archive: StubArchive, change: Callable[[list[dict[str, Any]]], tuple[int, Any]]) -> None:
    """Let the archive answer every query with what ``change`` makes of the right answer: a status, and a body as JSON or bytes."""
    handler = archive._server.RequestHandlerClass
    answer = archive.answer

    def get(self: Any) -> None:
        from urllib.parse import parse_qsl, urlsplit

        url = urlsplit(self.path)
        found = answer(url.path, dict(parse_qsl(url.query)))
        assert isinstance(found, list)
        status, body = change(found)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    handler.do_GET = get  # type: ignore[attr-defined]


def found() -> set[str]:
    return {study.uid for study in DicomWebHook("odd").find_studies(date_from="2024-01-01", date_to="2024-01-31")}


@pytest.mark.parametrize(
    "change",
    [
        lambda items: (200, None),
        lambda items: (200, {"error": "no database"}),
        lambda items: (200, ["1.2.1"]),
        lambda items: (200, [None]),
        lambda items: (200, [{tag: element["Value"][0] for tag, element in item.items()} for item in items]),
        lambda items: (200, [{tag: {"vr": "UI", "Value": element["Value"][0]} for tag, element in item.items()} for item in items]),
        lambda items: (200, b"[" * 100_000),
    ],
    ids=["null", "object", "texts", "nulls", "bare", "no list of values", "deep"],
)
def test_an_answer_of_another_form_is_refused_and_never_taken_for_no_studies(archive: StubArchive, change: Any) -> None:
    answering(archive, change)
    with pytest.raises(ArchiveRefused, match="the answer is not DICOM JSON") as caught:
        found()
    assert NnunetRetryPolicy().evaluate(caught.value, 1, 3).action.name == "FAIL"


@pytest.mark.parametrize("status", [404, 416])
def test_a_page_after_the_last_one_that_is_turned_down_ends_the_list(archive: StubArchive, status: int) -> None:
    answering(archive, lambda items: (200, items) if items else (status, b""))
    archive.cap = 3
    assert found() == set(STUDIES)
    hook = DicomWebHook("odd").get_conn()
    assert len(hook.instances("1.2.1", hook.series("1.2.1", None, counted=True)[0])) == 3
    archive.studies = {}
    with pytest.raises(ArchiveRefused, match=f"answers {status}"):
        found()
