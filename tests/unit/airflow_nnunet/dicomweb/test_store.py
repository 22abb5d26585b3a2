"""Results go back to the archive, each once, and what fails is named after all were tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from airflow.sdk.exceptions import AirflowSkipException

from airflow_nnunet.dicomweb import DicomWebHook, DicomWebStoreOperator
from airflow_nnunet.dicomweb.model import SeriesFilter
from airflow_nnunet.dicomweb.store import find_files
from airflow_nnunet.jobs.exceptions import ArchiveRefused, ArchiveUnavailable, InvalidConfig, InvalidData, JobLost
from support.airflow import context
from support.orthanc import Orthanc, made_seg, made_series, study_uid
from support.proxy import Act, Proxy


@pytest.fixture
def predictions(nnunet: Path) -> Path:
    """An output folder that the workspace allows."""
    folder = nnunet / "predictions" / "night"
    folder.mkdir(parents=True)
    return folder


def store(folder: Path, **fields: Any) -> dict[str, Any]:
    return DicomWebStoreOperator(task_id="store", folder=str(folder), **fields).execute(context())


def through(monkeypatch: pytest.MonkeyPatch, orthanc: Orthanc, proxy: Proxy, **extra: Any) -> None:
    connection = json.loads(orthanc.connection(timeout_s=20, **extra)) | {"port": proxy.port}
    monkeypatch.setenv("AIRFLOW_CONN_PROXIED", json.dumps(connection))


def test_a_segmentation_goes_up_is_found_and_comes_down_equal(
    orthanc: Orthanc, series: list[Path], predictions: Path, tmp_path: Path
) -> None:
    import highdicom as hd

    orthanc.upload(series)
    mask = made_seg(series, predictions / "case1.dcm")
    assert store(predictions) == {"stored": 1, "already_stored": 0}
    hook, study = DicomWebHook(), study_uid(series)
    found = hook.get_conn().series(study, SeriesFilter(modality="SEG"))
    assert [item.instances for item in found] == [1]
    result = hook.retrieve_study(study, tmp_path / "in", modality="SEG")
    (path,) = Path(result.folder).rglob("*.dcm")
    sent, came = pydicom.dcmread(predictions / "case1.dcm"), pydicom.dcmread(path)
    assert came == sent
    images = [str(pydicom.dcmread(image, stop_before_pixels=True).SOPInstanceUID) for image in series]
    back = hd.seg.segread(path).get_pixels_by_source_instance(images, combine_segments=True)
    np.testing.assert_array_equal(back, mask)


def test_what_was_stored_back_is_not_taken_for_an_image(orthanc: Orthanc, series: list[Path], predictions: Path, tmp_path: Path) -> None:
    orthanc.upload(series)
    made_seg(series, predictions / "case1.dcm")
    store(predictions)
    assert DicomWebHook().retrieve_study(study_uid(series), tmp_path / "in").instances == len(series)


def test_storing_twice_leaves_one_instance(
    orthanc: Orthanc, series: list[Path], predictions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_seg(series, predictions / "case1.dcm")
    with Proxy(orthanc.url) as proxy:
        through(monkeypatch, orthanc, proxy)
        assert store(predictions, dicomweb_conn_id="proxied") == {"stored": 1, "already_stored": 0}
        sent = len(proxy.paths)
        assert store(predictions, dicomweb_conn_id="proxied") == {"stored": 0, "already_stored": 1}
        assert len(proxy.paths) == sent, "nothing is asked or sent for what is on record"
    # Another way to the same archive has no record of it; the archive itself knows the instance by its UID.
    assert store(predictions) == {"stored": 1, "already_stored": 0}
    assert len(orthanc.instances(Modality="SEG")) == 1


def test_a_changed_file_is_sent_again(orthanc: Orthanc, series: list[Path], predictions: Path) -> None:
    made_seg(series, predictions / "case1.dcm")
    store(predictions)
    made_seg(series, predictions / "case1.dcm")
    assert store(predictions) == {"stored": 1, "already_stored": 0}
    assert len(orthanc.instances(Modality="SEG")) == 2


def test_all_are_tried_and_every_failure_is_named(orthanc: Orthanc, tmp_path: Path, predictions: Path) -> None:
    images = made_series(tmp_path / "made", slices=4)
    made_seg(images, predictions / "good.dcm")
    (predictions / "twin.dcm").write_bytes((predictions / "good.dcm").read_bytes())
    (predictions / "image.dcm").write_bytes(images[0].read_bytes())
    (predictions / "noise.dcm").write_bytes(b"CANARY" * 1000)
    with pytest.raises(InvalidData) as caught:
        store(predictions)
    message = str(caught.value)
    assert "3 of 4 files were not stored" in message
    for line in ("wrong_modality [image.dcm]: is of modality MR", "unreadable [noise.dcm]", "duplicate_uid [twin.dcm]"):
        assert line in message
    assert "CANARY" not in message
    assert len(orthanc.instances(Modality="SEG")) == 1
    assert not orthanc.instances(Modality="MR")


@pytest.mark.parametrize(("code", "error"), [(0xC122, InvalidData), (0x0122, InvalidData), (0xA700, JobLost)])
def test_the_archives_reason_decides_whether_another_try_may_help(
    orthanc: Orthanc, tmp_path: Path, predictions: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    made_seg(made_series(tmp_path / "made", slices=4), predictions / "case1.dcm")
    sop = str(pydicom.dcmread(predictions / "case1.dcm").SOPInstanceUID)
    item = {"00081155": {"vr": "UI", "Value": [sop]}, "00081197": {"vr": "US", "Value": [code]}}
    body = json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()
    refusal = Act(status=409, headers={"Content-Type": "application/dicom+json"}, body=body)
    with Proxy(orthanc.url, lambda path, number: refusal) as proxy:
        through(monkeypatch, orthanc, proxy)
        with pytest.raises(error, match=f"1 of 1 files were not stored(.|\n)*{code:04X}H"):
            store(predictions, dicomweb_conn_id="proxied")
        proxy.rule = lambda path, number: None
        assert store(predictions, dicomweb_conn_id="proxied") == {"stored": 1, "already_stored": 0}


def test_an_answer_that_says_nothing_is_checked_by_a_query(
    orthanc: Orthanc, tmp_path: Path, predictions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_seg(made_series(tmp_path / "made", slices=4), predictions / "case1.dcm")
    silent = Act(status=200, headers={"Content-Type": "application/dicom+json"}, body=b"{}")
    with Proxy(orthanc.url, lambda path, number: silent if path.endswith("/studies") else None) as proxy:
        through(monkeypatch, orthanc, proxy)
        with pytest.raises(JobLost, match="does not have it"):
            store(predictions, dicomweb_conn_id="proxied")
        store(predictions)
        assert store(predictions, dicomweb_conn_id="proxied") == {"stored": 1, "already_stored": 0}


def test_a_large_batch_survives_a_busy_archive(
    orthanc: Orthanc, tmp_path: Path, predictions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than dicomweb-client's chunk of 1 MB: such a body is a generator, which a retry below the client would send empty."""
    images = made_series(tmp_path / "made", slices=6, size=1024)
    for number in range(20):
        made_seg(images, predictions / f"case{number}.dcm")
    busy = {1: Act(status=503), 2: Act(cut=True)}
    with Proxy(orthanc.url, lambda path, number: busy.get(number)) as proxy:
        through(monkeypatch, orthanc, proxy)
        assert store(predictions, dicomweb_conn_id="proxied") == {"stored": 20, "already_stored": 0}
    assert len(orthanc.instances(Modality="SEG")) == 20


def test_after_an_outage_only_the_rest_is_sent(
    orthanc: Orthanc, tmp_path: Path, predictions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_nnunet.dicomweb.store._BATCH_FILES", 2)
    images = made_series(tmp_path / "made", slices=4)
    for number in range(6):
        made_seg(images, predictions / f"case{number}.dcm")
    with Proxy(orthanc.url, lambda path, number: Act(status=503) if number > 2 else None) as proxy:
        through(monkeypatch, orthanc, proxy, tries=1)
        with pytest.raises(ArchiveUnavailable, match="503"):
            store(predictions, dicomweb_conn_id="proxied")
        proxy.rule = lambda path, number: None
        assert store(predictions, dicomweb_conn_id="proxied") == {"stored": 2, "already_stored": 4}
    assert len(orthanc.instances(Modality="SEG")) == 6


def test_a_wrong_password_fails_before_anything_is_marked(
    orthanc: Orthanc, tmp_path: Path, predictions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_seg(made_series(tmp_path / "made", slices=4), predictions / "case1.dcm")
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(json.loads(orthanc.connection()) | {"password": "no"}))
    with pytest.raises(ArchiveRefused, match="connection 'wrong'"):
        store(predictions, dicomweb_conn_id="wrong")
    assert store(predictions) == {"stored": 1, "already_stored": 0}


def test_an_empty_folder_fails_or_skips_as_told(orthanc: Orthanc, predictions: Path) -> None:
    with pytest.raises(InvalidData, match=r"has no \.dcm file"):
        store(predictions)
    with pytest.raises(AirflowSkipException):
        store(predictions, on_empty="skip")


def test_only_the_workspaces_output_is_stored(orthanc: Orthanc, predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="outside the allowed folders"):
        store(tmp_path)
    with pytest.raises(InvalidConfig, match="no such folder"):
        store(predictions / "other")


def test_hidden_files_and_links_are_not_results(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.dcm").write_bytes(b"x")
    (predictions / "link.dcm").symlink_to(tmp_path / "secret.dcm")
    (predictions / ".scratch").mkdir()
    (predictions / ".scratch" / "half.dcm").write_bytes(b"x")
    (predictions / "deep").mkdir()
    (predictions / "deep" / "case.dcm").write_bytes(b"x")
    assert find_files(predictions) == [predictions / "deep" / "case.dcm"]
