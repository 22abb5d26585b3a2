"""A real archive: Orthanc with its DICOMweb plugin on loopback, and small studies to put into it."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.uid
import pytest
import requests
from pydicom.dataset import FileDataset, FileMetaDataset

ORTHANC = "/usr/sbin/Orthanc"
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
PATIENT = "Canary^Avasarala"
LOGIN = "nnunet"


@contextmanager
def running_archive(folder: Path) -> Iterator[Orthanc]:
    """A started archive with its storage below ``folder``, or a skip that says what to install."""
    if reason := missing():
        pytest.skip(reason)
    server = Orthanc(folder)
    try:
        yield server.start()
    finally:
        server.stop()


def missing() -> str | None:
    """Why no archive can be started here; None when one can."""
    absent = [path for path in (ORTHANC, PLUGIN) if not Path(path).exists()]
    return f"{', '.join(absent)} missing; apt-get install orthanc orthanc-dicomweb" if absent else None


class Orthanc:
    """One server with storage of its own. It can be stopped, killed and started again on the same port."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.port = _free_port()
        self.password = secrets.token_urlsafe(16)
        self._process: subprocess.Popen[bytes] | None = None
        storage = folder / "storage"
        storage.mkdir(parents=True, exist_ok=True)
        self._config = folder / "orthanc.json"
        configuration = {
            "Name": "test",
            "StorageDirectory": str(storage),
            "IndexDirectory": str(storage),
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {LOGIN: self.password},
            "Plugins": [PLUGIN],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **settings,
        }
        self._config.write_text(json.dumps(configuration))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def auth(self) -> tuple[str, str]:
        return LOGIN, self.password

    def start(self) -> Orthanc:
        """Start and wait until it answers."""
        log = open(self.folder / "log.txt", "ab")  # noqa: SIM115  (the server keeps it)
        self._process = subprocess.Popen([ORTHANC, str(self._config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self.folder / "log.txt").read_text()[-2000:]
            try:
                if requests.get(f"{self.url}/system", auth=self.auth, timeout=5).ok:
                    return self
            except requests.ConnectionError:
                time.sleep(0.05)
        raise AssertionError("Orthanc does not answer")

    def stop(self) -> None:
        """Stop it as an administrator would."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def clear(self) -> None:
        """Delete every patient."""
        for patient in self._get("patients"):
            requests.delete(f"{self.url}/patients/{patient}", auth=self.auth, timeout=30).raise_for_status()

    def upload(self, paths: Iterable[Path]) -> None:
        """Put files in by Orthanc's own REST interface, as a scanner would by its own means."""
        for path in paths:
            requests.post(f"{self.url}/instances", data=path.read_bytes(), auth=self.auth, timeout=30).raise_for_status()

    def instances(self, **tags: str) -> list[dict[str, Any]]:
        """Main tags of all instances that match, such as ``Modality="SEG"``."""
        query = {"Level": "Instance", "Query": tags, "Expand": True}
        found = requests.post(f"{self.url}/tools/find", json=query, auth=self.auth, timeout=30)
        found.raise_for_status()
        return list(found.json())

    def file(self, identifier: str) -> bytes:
        """An instance as it is stored."""
        found = requests.get(f"{self.url}/instances/{identifier}/file", auth=self.auth, timeout=30)
        found.raise_for_status()
        return found.content

    def connection(self, **extra: Any) -> str:
        """A connection of type dicomweb in JSON, as Airflow takes it from the environment."""
        fields = {"host": "127.0.0.1", "port": self.port, "schema": "http", "login": LOGIN, "password": self.password}
        return json.dumps({"conn_type": "dicomweb", **fields, "extra": extra})

    def _get(self, path: str) -> Any:
        found = requests.get(f"{self.url}/{path}", auth=self.auth, timeout=30)
        found.raise_for_status()
        return found.json()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def made_series(
    folder: Path,
    *,
    slices: int = 12,
    modality: str = "MR",
    description: str = "T1 made",
    study_description: str = "Brain made",
    study_date: str = "20240115",
    study: str | None = None,
    size: int = 32,
) -> list[Path]:
    """A small series of axial slices, 1 mm and random, with the canary as the patient's name and number."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = study or pydicom.uid.generate_uid(), pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    sop_class = {"MR": pydicom.uid.MRImageStorage, "CT": pydicom.uid.CTImageStorage}[modality]
    noise = np.random.default_rng(slices)
    paths = []
    for number in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, pydicom.uid.generate_uid()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        path = folder / f"{number:04d}.dcm"
        dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = PATIENT, "CANARY-42", "CANARY-77"
        dataset.PatientBirthDate, dataset.PatientSex, dataset.StudyID = "19700101", "O", "1"
        dataset.StudyDate, dataset.StudyTime, dataset.ReferringPhysicianName = study_date, "101010", "Canary^Doctor"
        dataset.Modality, dataset.SeriesDescription, dataset.StudyDescription = modality, description, study_description
        dataset.SeriesNumber, dataset.InstanceNumber = 1, number + 1
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, float(number)]
        dataset.PixelSpacing, dataset.SliceThickness = [1.0, 1.0], 1.0
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = size, size, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelData = noise.integers(0, 1000, (size, size), dtype=np.uint16).tobytes()
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def study_uid(paths: Sequence[Path]) -> str:
    return str(pydicom.dcmread(paths[0], stop_before_pixels=True).StudyInstanceUID)


def copy_real(source: Path, folder: Path) -> list[Path]:
    """The real series, or a skip by the caller when there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(path, folder / path.name)) for path in sorted(source.glob("*.dcm"))]


def made_seg(series: Sequence[Path], path: Path) -> np.ndarray:
    """A segmentation of a series as highdicom makes it, two slabs in the middle slices; returns its mask, slice by slice."""
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept
    from pydicom.sr.codedict import codes

    sources = [pydicom.dcmread(source) for source in series]
    mask = np.zeros((len(sources), sources[0].Rows, sources[0].Columns), dtype=np.uint8)
    mask[1:-1, 4:12, 5:20] = 1
    mask[1:-1, 14:20, 5:20] = 2
    algorithm = hd.AlgorithmIdentificationSequence(name="test", version="1", family=codes.cid7162.ArtificialIntelligence)
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=CodedConcept("119406000", "SCT", "Hippocampus"),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, label in ((1, "front"), (2, "back"))
    ]
    segmentation = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=mask,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=100,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    segmentation.save_as(path)
    return mask
