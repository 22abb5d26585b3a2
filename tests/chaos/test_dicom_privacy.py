"""Row 55: what identifies a patient goes from DICOM into the private folder, and nowhere else that the step writes."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from airflow_nnunet.backends import LocalBackend
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec, Resources, make_job_id
from nnunet_jobs.contract.storage.workspace import Workspace
from support.dicom import save, slices, uid
from support.dicom_labels import write_seg_object
from support.jobs import no_runner_left, wait_final

CANARY = "KANARIENVOGEL"
NUMBERS = ("4711081599", "19430102", "9988776655")  # patient id, birth date, accession: as digits
TAGS: dict[str, Any] = {
    "PatientName": f"{CANARY}^Hansi",
    "PatientBirthDate": NUMBERS[1],
    "AccessionNumber": NUMBERS[2],
    "OtherPatientIDs": f"{CANARY}-2",
    "StudyDescription": f"{CANARY} study",
    "SeriesDescription": f"{CANARY} series",
    "ProtocolName": f"{CANARY} protocol",
    "InstitutionName": f"{CANARY} hospital",
    "ReferringPhysicianName": f"{CANARY}^Doctor",
    "PatientComments": f"{CANARY} comment",
    "ImageComments": f"{CANARY} image",
    "StudyID": CANARY[:12],
    "OperatorsName": f"{CANARY}^Operator",
}


@pytest.fixture(autouse=True)
def tidy(workspace: Workspace) -> Iterator[None]:
    with no_runner_left(workspace):
        yield


def marked(datasets: list[Dataset]) -> list[Dataset]:
    for ds in datasets:
        for keyword, value in TAGS.items():
            setattr(ds, keyword, value)
        block = ds.private_block(0x0009, f"{CANARY} CREATOR", create=True)
        block.add_new(0x01, "LO", f"{CANARY} private")
    return datasets


def archive(root: Path) -> Path:
    for number in range(3):
        folder = root / f"{CANARY}_{number}" / f"{CANARY} series"
        save(folder, marked(slices(study=f"s{number}", patient=f"{NUMBERS[0]}{number}")), name=f"{CANARY}_{NUMBERS[0]}_{{}}.dcm".format)
        write_seg_object(root / f"{CANARY}_{number}" / f"{CANARY}.dcm", sorted(folder.iterdir()), {"tumour": tumour()})
    return root


def tumour() -> Any:
    import numpy as np

    mask = np.zeros((24, 20, 7), bool)
    mask[4:9, 3:12, 2:5] = True
    return mask


def run(workspace: Workspace, source: Path, name: str, **fields: Any) -> JobDir:
    params = {
        "dataset_id": 4, "name": "Small", "source": str(source), "holdout_fraction": 0.0,
        "channel_names": {"0": "CT"}, "label_names": {"background": 0, "tumour": 1}, **fields,
    }  # fmt: skip
    spec = JobSpec(
        job_id=make_job_id("register", name), step="register", params=params, workspace=workspace, resources=Resources(grace_s=5.0)
    )
    plugins = str(Path(__file__).resolve().parents[2] / "plugins")
    return LocalBackend(environment={"PYTHONPATH": plugins}).submit(spec)


def traces(root: Path, private: Path) -> list[str]:
    """Every place below a folder, names of files included, where a canary is."""
    words = [word.encode() for word in (CANARY, CANARY.lower(), *NUMBERS, *(uid(f"s{number}") for number in range(9)))]
    found = []
    for folder, _, names in os.walk(root):
        if Path(folder).is_relative_to(private):
            continue
        for name in names:
            path = Path(folder) / name
            data = path.read_bytes() if path.is_file() else b""
            if name.endswith(".gz"):
                data += gzip.decompress(data)
            found += [f"{path}: {word!r}" for word in words if word in data or word in str(path).encode()]
    return found


def test_fault_55_a_registration_leaves_no_trace_of_a_patient(tmp_path: Path, workspace: Workspace) -> None:
    job = run(workspace, archive(tmp_path / "archive"), "good")
    result = wait_final(job, timeout_s=120).unwrap()
    assert (result["train"], result["path"]) == (3, str(Path(workspace.raw) / "Dataset004_Small"))
    assert traces(tmp_path / "work", workspace.private) == []
    assert traces(workspace.private, tmp_path / "nowhere"), "the search finds what is there"
    mapping = (workspace.private / "Dataset004_Small.jsonl").read_text()
    assert all(f"{NUMBERS[0]}{number}" in mapping for number in range(3))
    assert "\n" in job.log.read_text(), "the log is where a leak would be"


def test_fault_55_faults_and_their_logs_leave_no_trace_either(tmp_path: Path, workspace: Workspace) -> None:
    """Everything that goes wrong at once: each message is made somewhere else."""
    source = archive(tmp_path / "archive")

    def more(study: str, **values: Any) -> list[Dataset]:
        return marked(slices(study=study, patient=f"{NUMBERS[0]}{study}", **values))

    def named(number: int) -> str:
        return f"{CANARY}_{number}.dcm"

    tilted = more("s3")
    for k, ds in enumerate(tilted):
        ds.ImagePositionPatient = [0, k, 2.5 * k]
    save(source / CANARY / "tilted", tilted, name=named)
    save(source / CANARY / "several", more("s4") + more("s4", series="another"), name=named)
    save(source / CANARY / "none", more("s5", modality="US"), name=named)
    conflict = more("s6")
    conflict[0].PatientID = f"{CANARY}-3"
    save(source / CANARY / "conflict", conflict, name=named)
    cut = source / f"{CANARY}_0" / f"{CANARY} series" / f"{CANARY}_{NUMBERS[0]}_3.dcm"
    cut.write_bytes(cut.read_bytes()[:-50])
    seg = source / f"{CANARY}_1" / f"{CANARY}.dcm"
    seg.write_bytes(seg.read_bytes()[:-40])
    (source / f"{CANARY}_garbage").write_bytes(bytes(128) + b"DICM" + CANARY.encode() * 20)
    (source / f"{CANARY}_link").symlink_to(tmp_path)
    (source / f"{CANARY}_locked").mkdir(mode=0o000)
    job = run(workspace, source, "bad")
    failure = wait_final(job, timeout_s=120).failure
    assert failure is not None
    assert failure.failure_class == "data", failure.message
    codes = {str(fault.code) for fault in failure.faults}
    assert codes >= {
        "dicom_tilt", "dicom_series_ambiguous", "dicom_series_missing", "dicom_patient", "dicom_pixels", "dicom_unreadable", "path_outside",
    }, codes  # fmt: skip
    assert traces(tmp_path / "work", workspace.private) == []
    assert CANARY in (workspace.private / "Dataset004_Small.files.json").read_text(), "who may see it finds the file"
    (source / f"{CANARY}_locked").chmod(0o700)
