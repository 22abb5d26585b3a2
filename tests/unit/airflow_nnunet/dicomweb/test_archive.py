"""Queries and errors against a real Orthanc, and against the same one behind a network with faults."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.dicomweb import DicomWebHook, DicomWebStudyTrigger
from airflow_nnunet.dicomweb.model import SeriesFilter
from airflow_nnunet.jobs.exceptions import ArchiveRefused, ArchiveUnavailable, InstancesRejected, InvalidConfig
from airflow_nnunet.jobs.retry import NnunetRetryPolicy
from airflow_nnunet.settings.resolver import resolve_config
from nnunet_jobs.contract.failure import ConfigError
from support.orthanc import PATIENT, Orthanc, made_series, study_uid
from support.proxy import Act, Proxy, is_instance
from support.stub_archive import StubArchive


def through(monkeypatch: pytest.MonkeyPatch, orthanc: Orthanc, proxy: Proxy, **extra: Any) -> DicomWebHook:
    """A hook whose requests go through the proxy."""
    connection = json.loads(orthanc.connection(**{"tries": 3, "timeout_s": 10, **extra}))
    monkeypatch.setenv("AIRFLOW_CONN_PROXIED", json.dumps(connection | {"port": proxy.port}))
    return DicomWebHook("proxied")


@pytest.fixture
def brains(orthanc: Orthanc, tmp_path: Path) -> dict[str, str]:
    """Three studies: name to StudyInstanceUID."""
    wanted = {
        "old": {"study_date": "20240101", "study_description": "Brain [made] old"},
        "new": {"study_date": "20240215", "study_description": "Brain made new"},
        "ct": {"study_date": "20240216", "modality": "CT", "description": "Thorax", "study_description": "Thorax made"},
    }
    uids = {}
    for name, fields in wanted.items():
        paths = made_series(tmp_path / name, slices=3, **fields)  # type: ignore[arg-type]
        orthanc.upload(paths)
        uids[name] = study_uid(paths)
    return uids


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, {"old", "new", "ct"}),
        ({"date_from": "2024-02-01"}, {"new", "ct"}),
        ({"date_to": "2024-02-15"}, {"old", "new"}),
        ({"date_from": "2024-02-15", "date_to": "2024-02-15"}, {"new"}),
        ({"modality": "CT"}, {"ct"}),
        ({"modality": "MR", "date_from": "2024-02-01"}, {"new"}),
        ({"description": "Brain*"}, {"old", "new"}),
        ({"description": "brain [made]*"}, {"old"}),
        ({"description": "Brain made ne?"}, {"new"}),
        ({"modality": "PT"}, set()),
    ],
)
def test_studies_are_found_by_date_modality_and_description(brains: dict[str, str], query: dict[str, str], expected: set[str]) -> None:
    found = DicomWebHook().find_studies(**query)  # type: ignore[arg-type]
    assert {study.uid for study in found} == {brains[name] for name in expected}
    assert all((study.series, study.instances) == (1, 3) for study in found)


def test_a_studys_state_is_its_counts(brains: dict[str, str]) -> None:
    state = DicomWebHook().study_state(brains["ct"])
    assert (state.series, state.instances) == (1, 3)
    unknown = DicomWebHook().study_state("1.2.3.4")
    assert (unknown.series, unknown.instances) == (0, 0)


def test_a_series_is_chosen_by_modality_and_description(orthanc: Orthanc, tmp_path: Path) -> None:
    first = made_series(tmp_path / "t1", slices=2, description="T1 made")
    uid = study_uid(first)
    orthanc.upload([*first, *made_series(tmp_path / "t2", slices=3, description="T2 made", study=uid)])
    archive = DicomWebHook().get_conn()
    assert [series.instances for series in archive.series(uid, SeriesFilter(modality="MR", description="t2*"))] == [3]
    assert len(archive.series(uid, SeriesFilter(modality="MR"))) == 2
    assert archive.series(uid, SeriesFilter(modality="CT")) == []


def test_pages_that_the_archive_cuts_short_and_filters_that_it_ignores_do_no_harm(
    brains: dict[str, str], orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive that answers every query with everything it has, whatever page and filter were asked for."""
    import requests

    everything = requests.get(f"{orthanc.url}/dicom-web/studies", auth=orthanc.auth, timeout=10).content
    with Proxy(
        orthanc.url, lambda path, number: Act(status=200, headers={"Content-Type": "application/dicom+json"}, body=everything)
    ) as proxy:
        found = through(monkeypatch, orthanc, proxy).find_studies(modality="MR", date_from="2024-02-01")
        assert [study.uid for study in found] == [brains["new"]]
        assert len(proxy.paths) == 3, "the page that repeats itself is the last one, and one query tells whether more is kept back"


def test_an_answer_with_a_uid_that_is_a_path_goes_no_further(
    brains: dict[str, str], orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = json.dumps([{"0020000D": {"vr": "UI", "Value": ["1.2/../../../users"]}}]).encode()
    act = Act(status=200, headers={"Content-Type": "application/dicom+json"}, body=evil)
    with Proxy(orthanc.url, lambda path, number: act) as proxy, pytest.raises(InstancesRejected, match="must be a DICOM UID"):
        through(monkeypatch, orthanc, proxy).find_studies()


def test_all_pages_are_read(brains: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_nnunet.dicomweb.queries._PAGE", 1)
    assert {study.uid for study in DicomWebHook().find_studies()} == set(brains.values())


def test_a_query_without_bounds_is_refused(brains: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_nnunet.dicomweb.queries.MOST_STUDIES", 2)
    with pytest.raises(ArchiveRefused, match="more than 2; narrow it by date"):
        DicomWebHook().find_studies()


def test_a_wrong_password_names_the_connection_and_is_not_retried(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(json.loads(orthanc.connection()) | {"password": "hush-hush"}))
    hook = DicomWebHook("wrong")
    with pytest.raises(ArchiveRefused, match=r"connection 'wrong'.*401.*check login and password") as caught:
        hook.find_studies()
    assert "hush-hush" not in str(caught.value)
    assert NnunetRetryPolicy().evaluate(caught.value, 1, 3).action.name == "FAIL"
    ok, message = hook.test_connection()
    assert not ok
    assert "401" in message
    assert DicomWebHook().test_connection() == (True, f"{orthanc.url}/dicom-web answers")


@pytest.mark.parametrize("base_path", ["no-such-path", "/"])
def test_a_wrong_address_is_not_retried(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch, base_path: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", orthanc.connection(base_path=base_path))
    with pytest.raises(ArchiveRefused, match="check base_path"):
        DicomWebHook("wrong").find_studies()


def test_a_page_for_people_is_not_taken_for_an_answer(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    login = Act(status=200, headers={"Content-Type": "text/html"}, body=b"<html>Please log in</html>")
    with Proxy(orthanc.url, lambda path, number: login) as proxy, pytest.raises(ArchiveRefused, match="not DICOM JSON"):
        through(monkeypatch, orthanc, proxy).find_studies()


def test_an_archive_that_is_down_is_worth_another_try(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(orthanc.url) as proxy:
        hook = through(monkeypatch, orthanc, proxy, tries=2)
    with pytest.raises(ArchiveUnavailable, match=r"connection 'proxied'.*is the archive up") as caught:
        hook.find_studies()
    assert NnunetRetryPolicy().evaluate(caught.value, 1, 3).action.name == "RETRY"


def test_passing_errors_are_waited_out_for_as_long_as_the_archive_asks(
    brains: dict[str, str], orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = {1: Act(status=429, headers={"Retry-After": "2"}), 2: Act(status=503)}
    with Proxy(orthanc.url, lambda path, number: busy.get(number)) as proxy:
        began = time.monotonic()
        assert len(through(monkeypatch, orthanc, proxy).find_studies()) == 3
        assert time.monotonic() - began >= 2
        assert len(proxy.paths) == 4


@pytest.mark.parametrize("cut", [Act(cut=True), Act(silent=True)])
def test_a_cut_answer_is_asked_for_again(brains: dict[str, str], orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch, cut: Act) -> None:
    archive = DicomWebHook().get_conn()
    series = archive.series(brains["ct"], None)[0]
    uid = archive.instances(brains["ct"], series)[0]
    with Proxy(orthanc.url, lambda path, number: cut if is_instance(path) and number == 1 else None) as proxy:
        through_proxy = through(monkeypatch, orthanc, proxy).get_conn()
        assert through_proxy.fetch(brains["ct"], series.uid, uid) == archive.fetch(brains["ct"], series.uid, uid)
        assert proxy.fetched == 2


def test_an_instance_that_is_gone_is_told_from_a_wrong_address(
    brains: dict[str, str], orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = DicomWebHook().get_conn()
    series = archive.series(brains["ct"], None)[0]
    with pytest.raises(ArchiveUnavailable, match="withdrawn"):
        archive.fetch(brains["ct"], series.uid, "1.2.3.4")
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", orthanc.connection(wado_prefix="no-such-prefix"))
    with pytest.raises(ArchiveRefused, match=r"404.*check base_path and the prefixes"):
        DicomWebHook("wrong").get_conn().fetch(brains["ct"], series.uid, archive.instances(brains["ct"], series)[0])


def test_what_is_no_dicom_file_is_refused_without_quoting_it(
    brains: dict[str, str], orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = DicomWebHook().get_conn()
    series = archive.series(brains["ct"], None)[0]
    uid = archive.instances(brains["ct"], series)[0]
    other = archive.instances(brains["ct"], series)[1]
    part = b"--x\r\nContent-Type: application/dicom\r\n\r\n%b\r\n--x--"
    for body, words in ((PATIENT.encode() * 100, "no DICOM file"), (archive.fetch(brains["ct"], series.uid, other), "another instance")):
        act = Act(status=200, headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}, body=part % body)
        with Proxy(orthanc.url, lambda path, number, act=act: act) as proxy, pytest.raises(InstancesRejected, match=words) as caught:  # type: ignore[misc]
            through(monkeypatch, orthanc, proxy).get_conn().fetch(brains["ct"], series.uid, uid)
        assert PATIENT not in str(caught.value)


def test_requests_of_many_threads_do_not_mix(brains: dict[str, str]) -> None:
    archive = DicomWebHook().get_conn()
    found: dict[str, list[int | None]] = {name: [] for name in brains}

    def ask(name: str) -> None:
        for _ in range(5):
            found[name].append(archive.study(brains[name]).instances)

    threads = [threading.Thread(target=ask, args=(name,)) for name in brains for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(counts == [3] * 10 for counts in found.values())


def test_wrong_arguments_are_refused_before_a_request(orthanc: Orthanc) -> None:
    hook = DicomWebHook()
    for query in (
        {"modality": "mr"},
        {"description": "a\\b"},
        {"date_from": "yesterday"},
        {"date_from": "2024-02-01", "date_to": "2024-01-01"},
    ):
        with pytest.raises(InvalidConfig):
            hook.find_studies(**query)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="must be a DICOM UID"):
        hook.study_state("1.2/../3")


def test_no_log_line_holds_a_patient_or_a_secret(brains: dict[str, str], orthanc: Orthanc, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hook = DicomWebHook()
    hook.find_studies()
    hook.study_state(brains["ct"])
    assert "anary" not in caplog.text
    assert orthanc.password not in caplog.text
    assert brains["ct"] not in caplog.text


# --- archives that cut their answers ----------------------------------------------------------------------------
@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubArchive]:
    """An archive that lists five items at once and ignores the offset."""
    with StubArchive(studies={"1.2.3": 8}, cap=5, offsets=False) as server:
        monkeypatch.setenv("AIRFLOW_CONN_CUT", server.connection())
        yield server


def test_a_cut_list_of_instances_is_refused_with_the_archives_own_count(cut: StubArchive, tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match=r"lists 5 of the 8 that it counts and ignores offset.*raise the archive's limit") as caught:
        DicomWebHook("cut").retrieve_study("1.2.3", tmp_path / "in")
    assert NnunetRetryPolicy().evaluate(caught.value, 1, 3).action.name == "FAIL"
    assert not list(tmp_path.rglob("*.dcm"))


def test_where_the_archive_counts_nothing_the_metadata_tell(cut: StubArchive, tmp_path: Path) -> None:
    cut.counts = False
    with pytest.raises(ArchiveRefused, match="lists 5 of the 8"):
        DicomWebHook("cut").retrieve_study("1.2.3", tmp_path / "in")
    cut.metadata = False
    with pytest.raises(ArchiveRefused, match="metadata of a series: the archive answers 404"):
        DicomWebHook("cut").retrieve_study("1.2.3", tmp_path / "in")
    cut.studies, cut.metadata = {"1.2.3": 5}, True
    archive = DicomWebHook("cut").get_conn()
    assert len(archive.instances("1.2.3", archive.series("1.2.3", None)[0])) == 5, "a list that ends at the limit is whole"


def test_a_cut_list_of_series_is_refused_with_the_archives_own_count(cut: StubArchive, tmp_path: Path) -> None:
    """A whole series would be missing from the study, and nobody would see it."""
    cut.series = {"1.2.3": 7}
    with pytest.raises(ArchiveRefused, match=r"a query for series: the archive lists 5 of the 7 that it counts and ignores offset"):
        DicomWebHook("cut").retrieve_study("1.2.3", tmp_path / "in")
    cut.offsets = True
    assert len(DicomWebHook("cut").get_conn().series("1.2.3", None)) == 7


def test_pages_that_honour_the_offset_are_added_up(cut: StubArchive) -> None:
    cut.offsets = True
    archive = DicomWebHook("cut").get_conn()
    (series,) = archive.series("1.2.3", None)
    assert len(archive.instances("1.2.3", series)) == 8


def test_a_list_that_is_shorter_than_the_count_is_asked_for_again(cut: StubArchive) -> None:
    cut.offsets, cut.listed = True, 6
    archive = DicomWebHook("cut").get_conn()
    with pytest.raises(ArchiveUnavailable, match="lists 6 of the 8 that it counts; is the series complete") as caught:
        archive.instances("1.2.3", archive.series("1.2.3", None)[0])
    assert NnunetRetryPolicy().evaluate(caught.value, 1, 3).action.name == "RETRY"


def test_a_cut_list_of_studies_is_divided_by_dates(cut: StubArchive) -> None:
    cut.studies = {f"1.2.{day}.{number}": 3 for day in range(1, 7) for number in range(3)}
    cut.dates = {uid: f"2024010{uid.split('.')[2]}" for uid in cut.studies}
    found = DicomWebHook("cut").find_studies(date_from="2024-01-01", date_to="2024-01-31")
    assert {study.uid for study in found} == set(cut.studies)
    assert len(found) == len(cut.studies)

    more = {f"1.2.6.{number}": 3 for number in range(3, 9)}
    cut.studies |= more
    cut.dates |= dict.fromkeys(more, "20240106")
    with pytest.raises(ArchiveRefused, match="no more than 5 at once and ignores offset"):
        DicomWebHook("cut").find_studies(date_from="2024-01-01", date_to="2024-01-31")


@pytest.mark.parametrize(("first", "last"), [("2024-01-06", "2024-01-06"), ("2024-01-06", None), ("2024-01-06", "2024-01-31")])
def test_a_cut_list_of_studies_that_cannot_be_divided_is_refused(cut: StubArchive, first: str, last: str | None) -> None:
    """All that match are of one day: no other answer has shown before that this archive cuts them."""
    cut.dates = {"1.2.1": "20231224"} | {f"1.2.6.{number}": "20240106" for number in range(8)}
    cut.studies = dict.fromkeys(cut.dates, 3)
    with pytest.raises(ArchiveRefused, match="no more than 5 at once and ignores offset"):
        DicomWebHook("cut").find_studies(date_from=first, date_to=last)
    for uid in [uid for uid in cut.studies if uid.startswith("1.2.6.")][4:]:
        del cut.studies[uid]
    assert len(DicomWebHook("cut").find_studies(date_from=first, date_to=last)) == 4, "shorter than another answer, so it is whole"


def test_an_archive_that_ignores_dates_and_offset_gives_what_it_has(cut: StubArchive) -> None:
    cut.studies, cut.cap = {f"1.2.{number}": 3 for number in range(8)}, 100
    assert len(DicomWebHook("cut").find_studies(date_from="2024-01-01", date_to="2024-01-31")) == 8


def test_a_list_of_series_that_is_shorter_than_the_count_is_asked_for_again(cut: StubArchive, tmp_path: Path) -> None:
    """Such as while a study arrives, or where an archive counts offsets within its cut answer."""
    cut.offsets, cut.series, cut.listed_series = True, {"1.2.3": 3}, 2
    with pytest.raises(ArchiveUnavailable, match="a query for series: the archive lists 2 of the 3 that it counts; is the study complete"):
        DicomWebHook("cut").retrieve_study("1.2.3", tmp_path / "in")
    assert not list(tmp_path.rglob("*.dcm"))


def test_only_connections_of_their_own_type_are_used(cut: StubArchive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever triggers a DAG may name a connection; its password must not go to the connection's host."""
    other = json.loads(cut.connection()) | {"conn_type": "postgres", "login": "u", "password": "secret"}
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps(other))
    with pytest.raises(InvalidConfig, match="connection 'other': is of type 'postgres'; name one of type dicomweb") as caught:
        DicomWebHook("other").find_studies()
    assert "secret" not in str(caught.value)
    assert DicomWebHook("other").test_connection()[0] is False
    ledger = str(tmp_path / "ledger.jsonl")
    trigger = DicomWebStudyTrigger(
        dicomweb_conn_id="other", query={}, stable_for=1, hold_s=1, poke_interval=1, ledger=ledger, only_new=True, max_offers=1, most=1
    )

    async def event() -> Any:
        return [event.payload async for event in trigger.run()]

    (payload,) = asyncio.run(event())
    assert payload["status"] == "failed"
    assert "postgres" in payload["message"]
    assert cut.asked == []
    with pytest.raises(ConfigError, match="connection 'other': is of type 'postgres'; name one of type nnunet"):
        resolve_config("other")


def test_a_query_that_the_archive_finds_too_large_is_to_be_narrowed(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "answers 413: it matches more than the archive returns; narrow it by date"
    with Proxy(orthanc.url, lambda path, number: Act(status=413)) as proxy, pytest.raises(ArchiveRefused, match=words):
        through(monkeypatch, orthanc, proxy).find_studies()
