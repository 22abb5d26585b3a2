"""Small image series, SEG and RTSTRUCT objects made on the spot, and real series taken as a Series and its Grid."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from nnunet_jobs.dicom.model import Grid, Instance, Series

MR, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.481.3"
CANARY = {
    "PatientName": "Canary^Yellow",
    "PatientID": "MRN-7734517",
    "PatientBirthDate": "19431231",
    "PatientSex": "F",
    "AccessionNumber": "ACC99173",
}


def uid(*parts: Any) -> str:
    return generate_uid(entropy_srcs=[str(part) for part in parts])


def write_series(
    folder: Path,
    *,
    shape: tuple[int, int, int] = (12, 10, 6),
    spacing: tuple[float, float, float] = (0.8, 0.9, 2.5),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    seed: str = "a",
    study: str = "study",
    frame: str = "frame",
    **values: Any,
) -> list[Path]:
    """A single-frame MR series; slice files in ascending order along the normal."""
    folder.mkdir(parents=True, exist_ok=True)
    across, down = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
    normal = np.cross(across, down)
    pixels = np.random.default_rng(len(seed)).integers(0, 900, shape, dtype=np.int16)
    paths = []
    for k in range(shape[2]):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MR
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid(seed, k)
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid(study), uid(seed, "series"), uid(frame)
        ds.Modality, ds.SeriesDescription, ds.SeriesNumber, ds.InstanceNumber = "MR", "small", 3, k + 1
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.ReferringPhysicianName = "20240102", "101112", "7", ""
        for keyword, value in {**CANARY, **values}.items():
            setattr(ds, keyword, value)
        ds.ImageOrientationPatient = [f"{value:.6f}" for value in orientation]
        ds.ImagePositionPatient = [f"{value:.5f}" for value in np.asarray((-20.0, 15.0, 40.0)) + k * spacing[2] * normal]
        ds.PixelSpacing, ds.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        ds.Columns, ds.Rows = shape[0], shape[1]
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.PixelData = np.ascontiguousarray(pixels[:, :, k].T).tobytes()
        paths.append(folder / f"{k:03d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def series_of(paths: Sequence[Path], *, flipped: bool = False) -> tuple[Series, Grid]:
    """Image files as a Series and its Grid, slices ascending along the normal unless ``flipped``."""
    found = [(pydicom.dcmread(path, stop_before_pixels=True), path) for path in paths]
    first = found[0][0]
    across, down = (np.asarray(first.ImageOrientationPatient[part], float) for part in (slice(0, 3), slice(3, 6)))
    normal = np.cross(across, down)
    found.sort(key=lambda item: float(np.dot(normal, np.asarray(item[0].ImagePositionPatient, float))), reverse=flipped)
    positions = np.asarray([ds.ImagePositionPatient for ds, _ in found], float)
    affine = np.eye(4)
    affine[:3, 0] = across * float(first.PixelSpacing[1])
    affine[:3, 1] = down * float(first.PixelSpacing[0])
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(found) - 1)
    affine[:3, 3] = positions[0]
    series = Series(
        patient=str(first.PatientID),
        study_uid=str(first.StudyInstanceUID),
        series_uid=str(first.SeriesInstanceUID),
        frame_of_reference_uid=str(first.get("FrameOfReferenceUID", "")),
        modality=str(first.Modality),
        instances=tuple(instance(path, ds) for ds, path in found),
    )
    grid = Grid(
        shape=(int(first.Columns), int(first.Rows), len(found)), affine=affine, sop_uids=tuple(str(ds.SOPInstanceUID) for ds, _ in found)
    )
    return series, grid


def instance(path: Path, ds: Any) -> Instance:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Instance(path=path, sop_class=str(ds.SOPClassUID), sop_uid=str(ds.SOPInstanceUID), sha256=digest)


def object_of(path: Path, *, refers_to: Sequence[str] = ()) -> Series:
    """A SEG or RTSTRUCT file as a Series."""
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    return Series(
        patient=str(ds.PatientID),
        study_uid=str(ds.StudyInstanceUID),
        series_uid=str(ds.SeriesInstanceUID),
        frame_of_reference_uid=str(ds.get("FrameOfReferenceUID", "")),
        modality=str(ds.Modality),
        instances=(instance(path, ds),),
        refers_to=tuple(refers_to),
    )


def write_seg_object(
    path: Path,
    images: Sequence[Path],
    masks: Mapping[str, np.ndarray],
    *,
    kind: str = "BINARY",
    volume: Any = None,
    **options: Any,
) -> Series:
    """A SEG by highdicom's own constructor: masks (i, j, k) by segment name, on the image files in the order given.

    ``volume`` is an affine (LPS) that places the masks somewhere else than on the images.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    sources = [pydicom.dcmread(file) for file in images]
    for keyword in ("PatientBirthDate", "PatientSex"):
        sources[0].setdefault(keyword, "")  # highdicom asks for them, two of the real series lack them
    algorithm = hd.AlgorithmIdentificationSequence(name="test", family=codes.DCM.ArtificialIntelligence, version="1")
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(masks, start=1)
    ]
    stacked: Any = np.stack([mask.transpose(2, 1, 0) for mask in masks.values()], axis=-1)
    stacked = stacked.astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    if volume is not None:
        # highdicom's array axes are (slice, row, column), so the affine's columns turn round
        turned = np.asarray(volume)[:, [2, 1, 0, 3]]
        frame = str(sources[0].FrameOfReferenceUID)
        labelmap = np.zeros(stacked.shape[:3], np.uint8)
        for number in range(stacked.shape[-1]):
            labelmap[stacked[..., number] > 0] = number + 1
        stacked = hd.Volume(labelmap, affine=turned, coordinate_system="PATIENT", frame_of_reference_uid=frame)
    seg = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=stacked,
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=uid(path, "series"),
        series_number=9,
        sop_instance_uid=uid(path),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
    seg.save_as(path)
    return object_of(path, refers_to=[str(sources[0].SeriesInstanceUID)])


def contours_of(mask: np.ndarray, grid: Grid) -> list[tuple[str, np.ndarray, int]]:
    """Outlines of a mask slice by slice: (type, points in patient mm, slice); holes are contours of their own."""
    from skimage.measure import find_contours

    found = []
    for k in range(mask.shape[2]):
        if mask[:, :, k].any():
            for line in find_contours(np.pad(mask[:, :, k].astype(float), 1), 0.5):
                found.append(("CLOSED_PLANAR", to_patient(line[:-1] - 1, k, grid), k))
    return found


def to_patient(points: Any, k: float, grid: Grid) -> np.ndarray:
    """Points in voxel indices (i, j) of slice k to patient mm."""
    points = np.asarray(points, float)
    indices = np.column_stack([points, np.full(len(points), float(k)), np.ones(len(points))])
    return (grid.affine @ indices.T).T[:, :3]


def write_rtstruct(
    path: Path,
    reference: Series,
    grid: Grid,
    rois: Mapping[str, Sequence[tuple[str, np.ndarray, int | None]]],
    *,
    frame: str | None = None,
    series: str | None = None,
    decimals: int = 3,
) -> Series:
    """An RTSTRUCT: ROI name to (type, points in patient mm, slice that it refers to or None)."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = RTSTRUCT
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid(path)
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = reference.study_uid, uid(path, "series"), "RTSTRUCT"
    for keyword, value in CANARY.items():
        setattr(ds, keyword, value)
    frame = frame or reference.frame_of_reference_uid
    referenced_series, study, outer = Dataset(), Dataset(), Dataset()
    referenced_series.SeriesInstanceUID = series or reference.series_uid
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", reference.study_uid
    study.RTReferencedSeriesSequence = [referenced_series]
    outer.FrameOfReferenceUID, outer.RTReferencedStudySequence = frame, [study]
    ds.ReferencedFrameOfReferenceSequence = [outer]
    names, contoured = [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        item = Dataset()
        item.ROINumber, item.ROIName, item.ReferencedFrameOfReferenceUID = number, name, frame
        names.append(item)
        roi = Dataset()
        roi.ReferencedROINumber = number
        sequence = []
        for kind, points, k in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.{decimals}f}" for value in np.ravel(points)]
            if k is not None:
                image = Dataset()
                image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = reference.instances[0].sop_class, grid.sop_uids[k]
                contour.ContourImageSequence = [image]
            sequence.append(contour)
        roi.ContourSequence = sequence
        contoured.append(roi)
    ds.StructureSetROISequence, ds.ROIContourSequence = names, contoured
    ds.save_as(path, enforce_file_format=True)
    return object_of(path, refers_to=[series or reference.series_uid])


def write_enhanced(path: Path, *, order: Sequence[int], shape: tuple[int, int, int] = (12, 10, 6)) -> tuple[Series, Grid]:
    """A multi-frame MR whose frames are stored in any ``order`` of their slices."""
    ds = pydicom.dcmread(write_series(path.parent / "single", shape=shape)[0])
    planes = []
    for k in order:
        plane, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-20.0, 15.0, 40.0 + 2.5 * k]
        plane.PlanePositionSequence = [position]
        planes.append(plane)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [0.9, 0.8], 2.5, 2.5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(ds, keyword)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    ds.NumberOfFrames = shape[2]
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], planes
    ds.PixelData = ds.PixelData * shape[2]
    ds.save_as(path)
    affine = np.diag([0.8, 0.9, 2.5, 1.0])
    affine[:3, 3] = (-20.0, 15.0, 40.0)
    frames = tuple(list(order).index(k) + 1 for k in range(shape[2]))
    return object_of(path), Grid(shape=shape, affine=affine, sop_uids=(str(ds.SOPInstanceUID),), frames=frames)
