"""The operators in the workspace: where they may write, what they return, and what nobody ever reads in their output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from airflow_nnunet.dicomweb import DicomWebRetrieveOperator, DicomWebStoreOperator
from airflow_nnunet.jobs.exceptions import ArchiveRefused, InvalidConfig, InvalidData
from airflow_nnunet.jobs.retry import NnunetRetryPolicy
from nnunet_jobs.contract.failure import ConfigError
from support.airflow import PROJECT, context
from support.orthanc import LOGIN, PATIENT, Orthanc, made_seg, made_series, study_uid


@pytest.fixture
def incoming(nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder below input_roots."""
    folder = tmp_path / "incoming"
    folder.mkdir()
    monkeypatch.setenv("AIRFLOW__NNUNET__INPUT_ROOTS", str(folder))
    return folder


def retrieve(study: str, folder: Path, **fields: Any) -> dict[str, Any]:
    return DicomWebRetrieveOperator(task_id="retrieve", study=study, folder=str(folder), **fields).execute(context())


def test_a_study_is_retrieved_below_the_input_roots(orthanc: Orthanc, series: list[Path], incoming: Path) -> None:
    orthanc.upload(series)
    result = retrieve(study_uid(series), incoming / "pacs", modality="MR")
    assert result == {
        "name": result["name"], "folder": f"{incoming}/pacs/{result['name']}", "series": 1, "instances": len(series),
        "fetched": len(series), "removed": 0,
    }  # fmt: skip
    assert len(list(Path(result["folder"]).glob("*/*.dcm"))) == len(series)
    assert retrieve(study_uid(series), incoming / "pacs", modality="MR") == {**result, "fetched": 0}


@pytest.mark.parametrize("place", ["elsewhere", "nnunet/nnUNet_raw", "nnunet/predictions", "incoming/../other", "incoming/link"])
def test_nothing_is_written_outside_the_input_roots(orthanc: Orthanc, incoming: Path, tmp_path: Path, place: str) -> None:
    (incoming / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidConfig, match="extend input_roots"):
        retrieve("1.2.3", tmp_path / place)
    assert not (tmp_path / "elsewhere").exists()


def test_a_study_without_a_meant_series_fails_or_skips_as_told(orthanc: Orthanc, incoming: Path, tmp_path: Path) -> None:
    paths = made_series(tmp_path / "made", slices=2)
    orthanc.upload(paths)
    for study in (study_uid(paths), "1.2.3.4"):
        with pytest.raises(InvalidData, match="no series of modality CT"):
            retrieve(study, incoming, modality="CT")
        with pytest.raises(AirflowSkipException):
            retrieve(study, incoming, modality="CT", on_empty="skip")


@pytest.mark.parametrize("uid", ["../../etc", "1.2/3", "", "{{ x }}"])
def test_a_study_that_is_no_uid_is_refused(orthanc: Orthanc, incoming: Path, uid: str) -> None:
    with pytest.raises(InvalidConfig, match="must be a DICOM UID"):
        retrieve(uid, incoming)


def test_templates_may_leave_filters_blank(orthanc: Orthanc, incoming: Path, tmp_path: Path) -> None:
    paths = made_series(tmp_path / "made", slices=2)
    orthanc.upload(paths)
    task = DicomWebRetrieveOperator(
        task_id="retrieve",
        study=study_uid(paths),
        folder=str(incoming),
        modality="{{ a }}",
        series_description="{{ b }}",
        workers="{{ c }}",
    )
    task.modality, task.series_description, task.workers = "", "None", "2"
    assert task.execute(context())["instances"] == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"workers": 17}, "workers=17"),
        ({"workers": "many"}, "workers='many'"),
        ({"modality": "mr"}, "modality='mr'"),
        ({"on_empty": "x"}, "on_empty"),
    ],
)
def test_wrong_constants_are_import_errors(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DicomWebRetrieveOperator(task_id="retrieve", study="1.2", folder="/x", **fields)
    for modalities in ([], "seg", ["SEG", "a b"]):
        with pytest.raises(ConfigError, match="modalit"):
            DicomWebStoreOperator(task_id="store", folder="/x", modalities=modalities)


def test_a_wrong_password_names_the_connection_and_burns_no_retry(
    orthanc: Orthanc, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(json.loads(orthanc.connection()) | {"password": "no"}))
    with pytest.raises(ArchiveRefused, match="connection 'wrong'") as caught:
        retrieve("1.2.3", incoming, dicomweb_conn_id="wrong")
    assert NnunetRetryPolicy().evaluate(caught.value, 1, 3).action.name == "FAIL"


def test_fault_15_a_full_disk_leaves_no_half_file_and_the_rest_follows_later(orthanc: Orthanc, incoming: Path, tmp_path: Path) -> None:
    """The limit on a file's size stands in for the disk's: a write that the kernel refuses, without a file system to mount."""
    paths = made_series(tmp_path / "made", slices=3, size=128)
    orthanc.upload(paths)
    program = f"""
        import resource, signal
        from pathlib import Path
        from airflow_nnunet.dicomweb import DicomWebHook
        from airflow_nnunet.jobs.retry import NnunetRetryPolicy
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, 16 * 1024))
        try:
            DicomWebHook().retrieve_study({study_uid(paths)!r}, Path({str(incoming)!r}))
        except OSError as error:
            print(error.strerror, NnunetRetryPolicy().evaluate(error, 1, 3).action.name)
    """
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "plugins")}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1:] == ["File too large RETRY"], done.stderr
    assert [path for path in incoming.rglob("*") if path.suffix in (".dcm", ".tmp")] == []
    assert retrieve(study_uid(paths), incoming)["fetched"] == 3


def test_fault_55_the_patient_is_in_no_log_no_xcom_and_no_name(
    orthanc: Orthanc, incoming: Path, nnunet: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a character set that is none, which a reader quotes in its warning, and a birth date that is none."""
    paths = made_series(tmp_path / "made", slices=4)
    uid = study_uid(paths)
    made_seg(paths, nnunet / "predictions" / "night" / "case1.dcm")
    for path in (*paths, nnunet / "predictions" / "night" / "case1.dcm"):
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", b"CANARY 192").replace(b"19700101", b"CANARY99"))
    orthanc.upload(paths)
    caplog.clear()
    caplog.set_level("DEBUG", logger="airflow_nnunet")
    caplog.set_level("INFO")
    warnings.simplefilter("always")
    result = retrieve(uid, incoming)
    stored = DicomWebStoreOperator(task_id="store", folder=str(nnunet / "predictions" / "night")).execute(context())
    assert stored["stored"] == 1
    printed = capfd.readouterr()
    names = " ".join(str(path) for root in (incoming, nnunet) for path in root.rglob("*"))
    for text in (caplog.text, printed.out, printed.err, names, json.dumps([result, stored])):
        for canary in (PATIENT, "CANARY", "Canary"):
            assert canary not in text
        assert uid not in text
        assert orthanc.password not in text
        assert f"{LOGIN}:" not in text


def test_no_job_is_made_and_no_credential_is_written(orthanc: Orthanc, incoming: Path, nnunet: Path, tmp_path: Path) -> None:
    paths = made_series(tmp_path / "made", slices=2)
    orthanc.upload(paths)
    retrieve(study_uid(paths), incoming)
    assert not (nnunet / "jobs").exists()
    for path in incoming.rglob("*"):
        assert path.is_dir() or orthanc.password.encode() not in path.read_bytes()
