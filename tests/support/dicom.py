"""DICOM images made on the spot: a study's slices with any geometry, multi-frame objects, and what another reader says of them."""

from __future__ import annotations

import atexit
import copy
import functools
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from nnunet_jobs.dicom.geometry import SeriesRefused, grid_of
from nnunet_jobs.dicom.model import Scan
from nnunet_jobs.dicom.series import scan
from nnunet_jobs.dicom.workers import dicom_workers
from nnunet_jobs.sandbox.workers import Workers

CT, MR, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
MODALITIES = {"CT": CT, "MR": MR, "PT": PET}
OBLIQUE = (0.999679, 0.02533, 0.0, -0.0244148, 0.963561, -0.26637)
SHAPE = (24, 20, 7)  # columns, rows, slices


def uid(*parts: Any) -> str:
    return generate_uid(entropy_srcs=[str(part) for part in parts])


def voxels(shape: Sequence[int] = SHAPE, *, seed: int = 0) -> np.ndarray:
    """Stored values (i, j, k), no two slices alike."""
    return np.random.default_rng(seed).integers(-1000, 3000, shape).astype(np.int16)


def slices(
    *,
    study: str = "study",
    series: str = "series",
    patient: str = "patient",
    modality: str = "CT",
    stored: np.ndarray | None = None,
    spacing: Sequence[float] = (0.7, 0.8, 2.5),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    origin: Sequence[float] = (-12.5, 30.0, -100.0),
    **values: Any,
) -> list[Dataset]:
    """A single-frame series, ascending along its normal; ``values`` are set on each slice."""
    stored = voxels() if stored is None else stored
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    found = []
    for k in range(stored.shape[2]):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = MODALITIES.get(modality, "1.2.840.10008.5.1.4.1.1.7")
        ds.SOPInstanceUID = uid(study, series, k)
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid(study), uid(study, series), uid(study, "frame")
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = patient, "Any^Body", "", ""
        ds.Modality, ds.SeriesDescription, ds.SeriesNumber, ds.InstanceNumber = modality, series, 4, 100 - k
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "20240102", "101112", "7", "", ""
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.ImageOrientationPatient = [f"{value:.7g}" for value in orientation]
        ds.ImagePositionPatient = [f"{value:.6f}" for value in np.array(origin, float) + k * spacing[2] * normal]
        ds.PixelSpacing, ds.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        ds.Columns, ds.Rows = stored.shape[:2]
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        if modality in ("CT", "PT"):
            ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
        ds.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        for keyword, value in values.items():
            setattr(ds, keyword, value)
        found.append(ds)
    return found


def save(folder: Path, datasets: Sequence[Dataset], *, name: Callable[[int], str] = "{:03d}.dcm".format) -> Path:
    """Write slices as files of a folder; file names say nothing of the order of slices when ``name`` does not."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, ds in enumerate(datasets):
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
        ds.save_as(folder / name(number), enforce_file_format=True)
    return folder


def multiframe(
    datasets: Sequence[Dataset], *, order: Sequence[int] | None = None, per_frame: Mapping[str, Sequence[float]] | None = None
) -> Dataset:
    """The slices as one Enhanced CT object, frames stored in ``order``; ``per_frame`` may give slope and intercept of each slice."""
    order = range(len(datasets)) if order is None else order
    whole = copy.deepcopy(datasets[0])
    whole.file_meta = FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole.SOPClassUID, whole.NumberOfFrames = ENHANCED_CT, len(datasets)
    whole.SOPInstanceUID = uid(datasets[0].SOPInstanceUID, "enhanced")
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = whole.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = whole.PixelSpacing, whole.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    frames = []
    for index in order:
        item, position, values, content = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = datasets[index].ImagePositionPatient
        values.RescaleSlope = (per_frame or {}).get("slope", [1] * len(datasets))[index]
        values.RescaleIntercept = (per_frame or {}).get("intercept", [0] * len(datasets))[index]
        values.RescaleType = "HU"
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", index + 1, [1, index + 1]
        item.PlanePositionSequence, item.PixelValueTransformationSequence, item.FrameContentSequence = [position], [values], [content]
        frames.append(item)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept",
                    "RescaleType"):  # fmt: skip
        if keyword in whole:
            delattr(whole, keyword)
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], frames
    whole.PixelData = b"".join(datasets[index].PixelData for index in order)
    return whole


@functools.cache
def workers() -> Workers:
    """One pair of workers for all tests of a process: starting one takes longer than most tests."""
    shared = dicom_workers(2)
    atexit.register(shared.__exit__, None, None, None)
    return shared


def scanned(folder: Path, **options: Any) -> Scan:
    return scan(folder.resolve(), beat=lambda: None, workers=workers(), threads=2, **options)


def codes_of(folder: Path) -> list[str]:
    """Codes of what is wrong with the one series of a folder."""
    found = scanned(folder)
    assert len(found.series) == 1, [len(series.instances) for series in found.series]
    try:
        grid_of(found.series[0])
    except SeriesRefused as refused:
        return [str(fault.code) for fault in refused.faults]
    return []


def canonical(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine with axes turned to right, front, up as far as they go: readers differ in the order of axes."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(image.dataobj, dtype=np.float64), np.asarray(image.affine)


def by_dcm2niix(folder: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """What dcm2niix makes of a folder with one series."""
    out.mkdir(parents=True, exist_ok=True)
    command = ["dcm2niix", "-z", "n", "-b", "n", "-f", "out", "-o", str(out), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(out.glob("*.nii"))
    assert len(found) == 1, (found, done.stdout)
    return canonical(found[0])


def by_pydicom(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What pydicom's own arrays, sorted by position, make of single-frame files: (i, j, k) voxels and the affine in RAS."""
    found = [pydicom.dcmread(path) for path in folder.iterdir()]
    row, column = (np.array(found[0].ImageOrientationPatient[part], float) for part in (slice(3), slice(3, 6)))
    found.sort(key=lambda ds: float(np.cross(row, column) @ np.array(ds.ImagePositionPatient, float)))
    values = [ds.pixel_array.T.astype(np.float64) * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0)) for ds in found]
    affine = np.eye(4)
    first, last = (np.array(ds.ImagePositionPatient, float) for ds in (found[0], found[-1]))
    affine[:3, 0], affine[:3, 1] = row * found[0].PixelSpacing[1], column * found[0].PixelSpacing[0]
    affine[:3, 2], affine[:3, 3] = (last - first) / (len(found) - 1), first
    return np.stack(values, axis=2), np.diag([-1, -1, 1, 1]) @ affine
