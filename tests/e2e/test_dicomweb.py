"""The archive under a real Airflow: a connection from its database, the sensor in its triggerer, studies mapped, results back.

The project's own pulling DAG runs with a model of random weights. A second DAG, with a stand-in for the model, looks more often.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from devtools.stack import Stack
from devtools.testbed.stages import DATASET
from support.orthanc import LOGIN, PATIENT, Orthanc, made_series, running_archive, study_uid
from support.stack import Site

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_archive(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture(scope="module")
def stack(archive: Orthanc, promoted: Site) -> Stack:
    """The site's Airflow with the archive's connection, and a promoted model."""
    client = promoted.stack.client
    fields = json.loads(archive.connection())
    client.request("POST", "connections", json={"connection_id": "dicomweb_default", **fields, "extra": json.dumps(fields["extra"])})
    client.set_pool("pacs", 2, include_deferred=False)
    for name in ("pull", "nnunet_dicom_pull"):
        client.wait_for_dag(name)
    return promoted.stack


def pull(stack: Stack, *, timeout: float = 120) -> list[str]:
    """One run that waits so many seconds for studies; returns those that it took."""
    run = stack.client.trigger("pull", {"timeout": timeout})
    assert stack.client.wait_for_run("pull", run, timeout_s=180) == "success", stack.client.states("pull", run)
    if stack.client.states("pull", run)[("new_studies", -1)] == "skipped":
        return []
    found: list[str] = stack.client.xcom("pull", run, "new_studies")
    return found


def test_studies_come_and_results_go_back_each_once(stack: Stack, archive: Orthanc, tmp_path: Path) -> None:
    first = [made_series(tmp_path / name, slices=5) for name in ("a", "b")]
    for paths in first:
        archive.upload(paths)
    assert set(pull(stack)) == {study_uid(paths) for paths in first}
    assert len(archive.instances(Modality="SEG")) == 2

    later = made_series(tmp_path / "c", slices=4)
    archive.upload(later)
    assert pull(stack) == [study_uid(later)], "what was stored back makes no study new"
    assert len(archive.instances(Modality="SEG")) == 3

    assert pull(stack, timeout=20) == [], "a run with nothing new is skipped"


def test_the_projects_own_dag_segments_a_study_and_stores_the_result(stack: Stack, archive: Orthanc, tmp_path: Path) -> None:
    archive.clear()
    paths = made_series(tmp_path / "d", slices=24, study_date="20240301", size=40)
    archive.upload(paths)
    conf = {
        "dataset": DATASET,
        "incoming": str(stack.home.parent / "incoming" / "pacs"),
        "output": str(stack.home.parent / "work" / "predictions" / "pacs"),
        "lookback_days": 3650,
        "stable_for": 1,
    }
    run = stack.client.trigger("nnunet_dicom_pull", conf)
    assert stack.client.wait_for_run("nnunet_dicom_pull", run, timeout_s=300) == "success", stack.client.states("nnunet_dicom_pull", run)
    assert stack.client.xcom("nnunet_dicom_pull", run, "study.store", map_index=0) == {"stored": 1, "already_stored": 0}
    (found,) = archive.instances(Modality="SEG")
    seg = pydicom.dcmread(BytesIO(archive.file(found["ID"])))
    assert seg.StudyInstanceUID == study_uid(paths)
    assert seg.PatientName == PATIENT, "in the archive the result belongs to its patient"


def test_fault_55_airflow_keeps_no_patient_and_no_password(stack: Stack, archive: Orthanc) -> None:
    """Logs, database, configuration and job folders of everything that has run before, without the mapping that only its owner reads."""
    read = 0
    for root in (stack.home, stack.home.parent / "work"):
        for path in root.rglob("*"):
            if not path.is_file() or path.name.endswith(".dcm"):
                continue
            if ".private" in path.parts:
                assert path.parent.stat().st_mode & 0o077 == 0, path
                continue
            data = path.read_bytes()
            read += 1
            for word in (PATIENT, "CANARY", archive.password):
                assert word.encode() not in data, path
    assert read > 10
    assert LOGIN.encode() in (stack.home / "airflow.db").read_bytes(), "the database was looked at"
