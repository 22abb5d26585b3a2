"""A study comes to disk whole, through kills, outages and changes in the archive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests

from airflow_nnunet.dicomweb import DicomWebHook
from airflow_nnunet.dicomweb.retrieve import RETRIEVED, Retrieved
from airflow_nnunet.jobs.exceptions import ArchiveUnavailable
from support.airflow import PROJECT
from support.orthanc import PATIENT, Orthanc, made_series, study_uid
from support.proxy import Act, Proxy, is_instance


def until(holds: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def files(folder: Path) -> dict[str, bytes]:
    """SOPInstanceUID to content of every file that a reader would find."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")]
    return {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): path.read_bytes() for path in paths}


def originals(paths: list[Path]) -> dict[str, bytes]:
    return {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): path.read_bytes() for path in paths}


def connect(monkeypatch: pytest.MonkeyPatch, orthanc: Orthanc, port: int, **extra: Any) -> DicomWebHook:
    connection = json.loads(orthanc.connection(timeout_s=20, **extra)) | {"port": port}
    monkeypatch.setenv("AIRFLOW_CONN_PROXIED", json.dumps(connection))
    return DicomWebHook("proxied")


def stuck_after(count: int) -> Callable[[str, int], Act | None]:
    """Let ``count`` instances through and hold the next ones until the proxy is released."""
    return lambda path, number: Act(hang=True) if is_instance(path) and number > count else None


def test_a_study_arrives_byte_for_byte_in_parallel(orthanc: Orthanc, series: list[Path], tmp_path: Path) -> None:
    orthanc.upload(series)
    target = tmp_path / "in"
    result = DicomWebHook().retrieve_study(study_uid(series), target, modality="MR", workers=4)
    assert (result.series, result.instances, result.fetched, result.removed) == (1, len(series), len(series), 0)
    assert files(Path(result.folder)) == originals(series)
    assert Path(result.folder) == target / result.name
    manifest = json.loads((target / RETRIEVED / f"{result.name}.json").read_text())
    assert manifest["complete"]
    assert len(manifest["files"]) == len(series)


def test_compressed_images_come_as_they_are_stored(orthanc: Orthanc, tmp_path: Path) -> None:
    paths = made_series(tmp_path / "made", slices=3)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    orthanc.upload(paths)
    result = DicomWebHook().retrieve_study(study_uid(paths), tmp_path / "in")
    assert files(Path(result.folder)) == originals(paths)


def test_a_study_that_is_there_costs_only_queries(
    orthanc: Orthanc, series: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orthanc.upload(series)
    with Proxy(orthanc.url) as proxy:
        hook = connect(monkeypatch, orthanc, proxy.port)
        hook.retrieve_study(study_uid(series), tmp_path / "in")
        before = proxy.fetched
        assert hook.retrieve_study(study_uid(series), tmp_path / "in").fetched == 0
        assert proxy.fetched == before == len(series)


def test_killed_in_the_middle_only_open_instances_are_fetched_again(
    orthanc: Orthanc, series: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orthanc.upload(series)
    target, done = tmp_path / "in", 7
    program = f"""
        from pathlib import Path
        from airflow_nnunet.dicomweb import DicomWebHook
        DicomWebHook("proxied").retrieve_study({study_uid(series)!r}, Path({str(target)!r}), workers=3)
    """
    with Proxy(orthanc.url, stuck_after(done)) as proxy:
        hook = connect(monkeypatch, orthanc, proxy.port)
        environment = {**os.environ, "PYTHONPATH": str(PROJECT / "plugins")}
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], env=environment, stdin=subprocess.DEVNULL)
        try:
            until(lambda: len(list(target.rglob("*.dcm"))) == done and proxy.fetched == done + 3, "three requests are not open yet", 60)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert set(files(target).items()) <= set(originals(series).items()), "what has a name is whole"
        # A kill in the middle of a write leaves these; the next try clears them away.
        one = next(target.rglob("*.dcm"))
        one.with_name(f".{one.name}.1.abc.tmp").write_bytes(b"half")
        with open(next((target / RETRIEVED).glob("*.jsonl")), "a") as journal:
            journal.write('{"half a li')
        asked = proxy.fetched
        proxy.rule = lambda path, number: None
        result = hook.retrieve_study(study_uid(series), target, workers=3)
        assert result.fetched == len(series) - done
        assert proxy.fetched - asked == len(series) - done
    assert files(target) == originals(series)
    assert not list(target.rglob("*.tmp"))
    assert not list(target.rglob("*.jsonl"))


def test_an_outage_is_waited_out(orthanc: Orthanc, series: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orthanc.upload(series)
    results: list[Retrieved] = []
    with Proxy(orthanc.url, stuck_after(5)) as proxy:
        hook = connect(monkeypatch, orthanc, proxy.port, tries=8)
        thread = threading.Thread(target=lambda: results.append(hook.retrieve_study(study_uid(series), tmp_path / "in", workers=2)))
        thread.start()
        until(lambda: proxy.fetched == 7, "two requests are not open yet")
        orthanc.stop()
        proxy.rule = lambda path, number: None
        proxy.released.set()
        until(lambda: proxy.fetched > 7, "no request came while the archive was down")
        orthanc.start()
        thread.join(60)
    assert [result.instances for result in results] == [len(series)]
    assert files(tmp_path / "in") == originals(series)


def test_after_an_outage_that_outlasts_the_tries_the_next_try_goes_on(
    orthanc: Orthanc, series: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orthanc.upload(series)
    broken = lambda path, number: Act(status=503) if is_instance(path) and number > 5 else None  # noqa: E731
    with Proxy(orthanc.url, broken) as proxy:
        hook = connect(monkeypatch, orthanc, proxy.port, tries=1)
        with pytest.raises(ArchiveUnavailable, match="503"):
            hook.retrieve_study(study_uid(series), tmp_path / "in", workers=2)
        assert proxy.fetched < len(series), "after the failure nothing new is begun"
    orthanc.stop()
    orthanc.start()
    result = DicomWebHook().retrieve_study(study_uid(series), tmp_path / "in")
    assert result.fetched == len(series) - 5
    assert files(tmp_path / "in") == originals(series)


def test_a_damaged_or_deleted_file_is_fetched_again(orthanc: Orthanc, series: list[Path], tmp_path: Path) -> None:
    orthanc.upload(series)
    hook = DicomWebHook()
    first = hook.retrieve_study(study_uid(series), tmp_path / "in")
    damaged, deleted, *_ = sorted(Path(first.folder).rglob("*.dcm"))
    damaged.write_bytes(damaged.read_bytes()[:-10])
    deleted.unlink()
    assert hook.retrieve_study(study_uid(series), tmp_path / "in").fetched == 2
    assert files(tmp_path / "in") == originals(series)


def test_the_copy_follows_the_archive(orthanc: Orthanc, series: list[Path], tmp_path: Path) -> None:
    orthanc.upload(series[:-2])
    hook = DicomWebHook()
    first = hook.retrieve_study(study_uid(series), tmp_path / "in")
    orthanc.upload(series[-2:])
    assert hook.retrieve_study(study_uid(series), tmp_path / "in").fetched == 2
    gone = next(iter(originals(series[:1])))
    identifier = orthanc.instances(SOPInstanceUID=gone)[0]["ID"]
    requests.delete(f"{orthanc.url}/instances/{identifier}", auth=orthanc.auth, timeout=10).raise_for_status()
    third = hook.retrieve_study(study_uid(series), tmp_path / "in")
    assert (third.instances, third.fetched, third.removed) == (len(series) - 1, 0, 1)
    assert files(Path(first.folder)) == originals(series[1:])


def test_two_tasks_that_want_one_study_fetch_it_once(
    orthanc: Orthanc, series: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orthanc.upload(series)
    fetched: list[int] = []
    with Proxy(orthanc.url) as proxy:
        hook = connect(monkeypatch, orthanc, proxy.port)
        hook.get_conn()
        work = lambda: fetched.append(hook.retrieve_study(study_uid(series), tmp_path / "in").fetched)  # noqa: E731
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(fetched) == [0, 0, len(series)]
        assert proxy.fetched == len(series)


def test_series_are_chosen_and_two_choices_keep_apart(orthanc: Orthanc, tmp_path: Path) -> None:
    first = made_series(tmp_path / "t1", slices=2, description="T1 made")
    second = made_series(tmp_path / "t2", slices=3, description="T2 made", study=study_uid(first))
    orthanc.upload([*first, *second])
    hook, target = DicomWebHook(), tmp_path / "in"
    one = hook.retrieve_study(study_uid(first), target, series_description="T1*")
    two = hook.retrieve_study(study_uid(first), target, series_description="t2*")
    assert files(Path(one.folder)) == originals(first)
    assert files(Path(two.folder)) == originals(second)
    assert hook.retrieve_study(study_uid(first), target, modality="CT").instances == 0


def test_fault_55_no_name_on_disk_holds_a_patient_or_a_uid(orthanc: Orthanc, tmp_path: Path) -> None:
    paths = made_series(tmp_path / "made", slices=2)
    orthanc.upload(paths)
    result = DicomWebHook().retrieve_study(study_uid(paths), tmp_path / "in")
    names = " ".join(str(path.relative_to(tmp_path / "in")) for path in (tmp_path / "in").rglob("*"))
    notes = "".join(path.read_text() for path in (tmp_path / "in" / RETRIEVED).iterdir())
    for text in (names, notes, json.dumps(result.to_json())):
        assert PATIENT not in text
        assert "CANARY" not in text
        assert "1.2.826" not in text
