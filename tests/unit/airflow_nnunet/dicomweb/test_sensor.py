"""The sensor hands out studies that are complete and new: judged over time, against a real archive, across runs and restarts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException

from airflow_nnunet.dicomweb import DicomWebStudyTrigger
from airflow_nnunet.dicomweb.ledger import ledgers
from airflow_nnunet.dicomweb.model import Study
from airflow_nnunet.dicomweb.stability import Look, StudyWatch
from airflow_nnunet.jobs.exceptions import InvalidConfig, JobLost
from airflow_nnunet.jobs.retry import NnunetRetryPolicy
from nnunet_jobs.contract.failure import ConfigError
from support.orthanc import PATIENT, Orthanc, made_seg, made_series, study_uid
from support.proxy import Proxy
from support.study_sensor import History, first_event, run, sensor, trigger_of, uids

TIMEOUT = {"error": "Trigger timeout"}


def connect(monkeypatch: pytest.MonkeyPatch, orthanc: Orthanc, port: int) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_DICOMWEB_DEFAULT", json.dumps(json.loads(orthanc.connection()) | {"port": port}))


# --- against the archive ----------------------------------------------------------------------------------------
def test_a_study_that_still_arrives_is_waited_for(
    history: History, orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = made_series(tmp_path / "made", slices=8)
    orthanc.upload(paths[:4])
    halves: dict[str, float] = {}

    async def watch(proxy: Proxy) -> Any:
        event = asyncio.ensure_future(first_event(trigger_of(sensor(stable_for=2.0), history.context())))
        while len(proxy.paths) < 3:  # each look is two pages: it has seen the first half and looks again
            await asyncio.sleep(0.02)
        assert not event.done()
        await asyncio.to_thread(orthanc.upload, paths[4:])
        halves["second"] = time.monotonic()
        payload = await event
        halves["event"] = time.monotonic()
        return payload

    with Proxy(orthanc.url) as proxy:
        connect(monkeypatch, orthanc, proxy.port)
        payload = asyncio.run(watch(proxy))
    assert payload["studies"] == [{"uid": study_uid(paths), "instances": 8, "meant": 8, "since": ""}]
    assert halves["event"] - halves["second"] >= 2.0


def test_a_rare_look_does_not_make_a_study_late(history: History, orthanc: Orthanc, tmp_path: Path) -> None:
    paths = made_series(tmp_path / "made", slices=2)
    orthanc.upload(paths)
    began = time.monotonic()
    assert run(sensor(poke_interval=50), history.context()) == [study_uid(paths)]
    assert time.monotonic() - began < 25


def test_a_study_is_handed_out_once_and_again_only_when_images_come(history: History, orthanc: Orthanc, tmp_path: Path) -> None:
    first = made_series(tmp_path / "first", slices=4)
    orthanc.upload(first)
    assert run(sensor(), history.context()) == [study_uid(first)]

    second = made_series(tmp_path / "second", slices=3)
    orthanc.upload(second)
    assert run(sensor(), history.context()) == [study_uid(second)], "the first study is known"

    # A segmentation that was stored back is no reason to begin again, or the pipeline would feed itself forever.
    made_seg(first, tmp_path / "seg.dcm")
    third = made_series(tmp_path / "third", slices=3)
    orthanc.upload([tmp_path / "seg.dcm", *third])
    assert run(sensor(), history.context()) == [study_uid(third)]

    orthanc.upload(made_series(tmp_path / "more", slices=2, study=study_uid(first)))
    assert run(sensor(), history.context()) == [study_uid(first)], "it has grown by images"

    assert set(run(sensor(only_new=False), history.context())) == {study_uid(paths) for paths in (first, second, third)}


def test_runs_with_other_filters_do_not_hide_each_others_studies(history: History, orthanc: Orthanc, tmp_path: Path) -> None:
    paths = made_series(tmp_path / "made", slices=3)
    orthanc.upload(paths)
    for fields in ({}, {"series_description": "T1*"}, {"description": "brain*"}):
        assert run(sensor(**fields), history.context()) == [study_uid(paths)]


def test_only_the_window_the_modality_and_the_description_count(history: History, orthanc: Orthanc, tmp_path: Path) -> None:
    wanted = made_series(tmp_path / "wanted", slices=2)
    orthanc.upload(wanted)
    others: Sequence[dict[str, str]] = (
        {"study_date": "20231201"},
        {"study_date": "20240118"},
        {"modality": "CT"},
        {"description": "Localizer"},
        {"study_description": "Thorax"},
    )
    for number, fields in enumerate(others):
        orthanc.upload(made_series(tmp_path / str(number), slices=2, **fields))  # type: ignore[arg-type]
    task = sensor(series_description="T1*", description="Brain*", lookback_days=7)
    assert run(task, history.context()) == [study_uid(wanted)]
    task = sensor(date_from="2023-12-01", date_to="2023-12-01")
    assert len(run(task, history.context())) == 1


def test_an_archive_that_is_down_for_a_while_is_asked_again(history: History, orthanc: Orthanc, tmp_path: Path) -> None:
    paths = made_series(tmp_path / "made", slices=2)
    orthanc.upload(paths)

    async def outage() -> Any:
        orthanc.stop()
        event = asyncio.ensure_future(first_event(trigger_of(sensor(), history.context())))
        done, _ = await asyncio.wait({event}, timeout=1.5)
        assert not done
        await asyncio.to_thread(orthanc.start)
        return await event

    assert uids(asyncio.run(outage())) == [study_uid(paths)]


def test_fault_04_a_new_triggerer_goes_on_from_what_was_stored(history: History, orthanc: Orthanc, tmp_path: Path) -> None:
    paths = made_series(tmp_path / "made", slices=2)
    orthanc.upload(paths)
    _, arguments = trigger_of(sensor(), history.context()).serialize()

    async def killed_and_started_again() -> Any:
        first = asyncio.ensure_future(first_event(DicomWebStudyTrigger(**arguments)))
        await asyncio.wait({first}, timeout=0.7)
        first.cancel()
        return await first_event(DicomWebStudyTrigger(**arguments))

    assert uids(asyncio.run(killed_and_started_again())) == [study_uid(paths)]


def test_a_wrong_password_fails_at_once_and_is_never_skipped(history: History, orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_DICOMWEB_DEFAULT", json.dumps(json.loads(orthanc.connection()) | {"password": "no"}))
    with pytest.raises(InvalidConfig, match=r"connection 'dicomweb_default'.*401") as caught:
        run(sensor(soft_fail=True), history.context())
    assert NnunetRetryPolicy().evaluate(caught.value, 1, 3).action.name == "FAIL"


def test_a_missing_connection_is_named_by_the_task(history: History) -> None:
    with pytest.raises(JobLost, match="connection 'no_such_pacs': does not exist"):
        run(sensor(dicomweb_conn_id="no_such_pacs"), history.context())


def test_without_deferral_the_worker_looks_itself(history: History, orthanc: Orthanc, tmp_path: Path) -> None:
    paths = made_series(tmp_path / "made", slices=2)
    orthanc.upload(paths)
    assert sensor(deferrable=False).execute(history.context()) == [study_uid(paths)]
    with pytest.raises(AirflowSkipException):
        sensor(deferrable=False, timeout=1, soft_fail=True).execute(history.context())


def test_fault_55_the_event_the_xcoms_and_the_ledger_hold_no_patient(
    history: History, nnunet: Path, orthanc: Orthanc, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    orthanc.upload(made_series(tmp_path / "made", slices=2))
    ctx = history.context()
    found = run(sensor(), ctx)
    (ledger,) = ledgers(nnunet / "jobs")
    for text in (json.dumps(found), json.dumps(ctx["ti"].pushed), caplog.text, ledger.path.read_text()):
        assert PATIENT not in text
        assert "CANARY" not in text.replace("dicomweb", "")


# --- without one ------------------------------------------------------------------------------------------------
def test_soft_fail_skips_a_run_with_nothing_new(history: History) -> None:
    with pytest.raises(AirflowSkipException, match="no new study was complete within 60 s"):
        sensor(soft_fail=True).resume_execution("__fail__", TIMEOUT, history.context())
    with pytest.raises(AirflowSensorTimeout):
        sensor().resume_execution("__fail__", TIMEOUT, history.context())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"modality": "mr"}, "modality='mr'"),
        ({"mode": "reschedule"}, "use deferrable=True"),
        ({"poke_interval": 0.1}, "archives serve patients first"),
        ({"stable_for": -1}, "stable_for=-1"),
        ({"date_from": "soon"}, "date_from='soon'"),
        ({"description": "x" * 65}, "1 to 64"),
    ],
)
def test_wrong_constants_are_import_errors(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sensor(**fields)


def looks(watch: StudyWatch, *steps: tuple[float, dict[str, int]], meant: dict[str, int] | None = None) -> list[Look]:
    """Feed times and counts to a watch."""
    return [
        watch.look(
            [Study(uid=uid, instances=count) for uid, count in counts.items()],
            now=now,
            count=lambda study: 0,
            meant=lambda uid, counts=counts: (meant or counts)[uid],  # type: ignore[misc]
        )
        for now, counts in steps
    ]


def test_a_count_that_changes_starts_the_wait_again() -> None:
    found = looks(StudyWatch(stable_for=10, hold_s=0, seen={}), (0, {"1": 5}), (9, {"1": 6}), (18, {"1": 6}), (19, {"1": 6}))
    assert [look.fire for look in found] == [False, False, False, True]
    assert [look.due_s for look in found] == [10, 10, 1, None]


def test_complete_studies_wait_for_the_others_but_not_for_ever() -> None:
    steps = [(float(now), {"1": 5, "2": now}) for now in range(0, 100, 5)]
    found = looks(StudyWatch(stable_for=10, hold_s=30, seen={}), *steps)
    fired = [now for (now, _), look in zip(steps, found, strict=True) if look.fire]
    assert fired[0] == 40, "stable at 10, held for 30"
    assert [item.uid for item in found[8].ready] == ["1"]


def test_a_study_without_a_meant_series_never_fires() -> None:
    found = looks(StudyWatch(stable_for=1, hold_s=0, seen={}), (0, {"1": 5}), (2, {"1": 5}), meant={"1": 0})
    assert not any(look.fire for look in found)
