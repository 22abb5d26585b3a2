"""Converts an image series into one NIfTI file: decodes the slices, rescales each by its own tags, and places them on our grid."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.storage.files import read_only, sync_directory, temporary_beside
from nnunet_jobs.dicom.geometry import SeriesRefused
from nnunet_jobs.dicom.model import Grid, Series, files_named
from nnunet_jobs.dicom.reading import read_file, uid_name
from nnunet_jobs.dicom.values import usual_bits, value_faults
from nnunet_jobs.dicom.workers import dicom_workers
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.sandbox.workers import Broken, Workers, size_of

VERSION = 2
"""Version of the conversion; it is part of the names in the cache, so that a changed converter converts again."""

_LEAST_S, _SLOWEST_MIB_S = 60.0, 1.0
"""A conversion that takes longer than the first number, and more than a second for each MiB of its files, is considered hung."""
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
_GDCM = tuple(f"1.2.840.10008.1.2.{rest}" for rest in ("4.50", "4.51", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91", "5"))
_LOSSY = tuple(f"1.2.840.10008.1.2.4.{rest}" for rest in ("50", "51", "81", "91"))
_SECONDARY_CAPTURE = {1: "1.2.840.10008.5.1.4.1.1.7.2", 2: "1.2.840.10008.5.1.4.1.1.7.3"}  # multi-frame grey, by bytes a sample
_PIXELS = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
           "PixelRepresentation", "PixelData")  # fmt: skip
Stored = npt.NDArray[np.integer[Any]]


class Undecodable(Exception):
    """A file's pixels cannot be used; the message is for users and does not identify the patient."""


def pixel_faults(series: Series) -> list[Fault]:
    """Return the reasons in the headers why pixels cannot be decoded, and a warning if they were compressed with loss."""
    images = [instance.image for instance in series.instances if instance.image]
    faults = value_faults(series)
    obstacles: dict[str, list[int]] = {}
    for instance in series.instances:
        if instance.image and not instance.image["missing"] and (reason := _obstacle(instance.image)):
            obstacles.setdefault(reason, []).append(instance.number)
    for reason, numbers in sorted(obstacles.items()):
        where = files_named(numbers) if len(numbers) < len(images) else ""
        message = f"{reason}{f' ({where})' if where else ''}; export the original images, uncompressed"
        faults.append(Fault(code=Code.DICOM_PIXELS, message=message, file=where if len(numbers) == 1 and where else None))
    lossy = sum(image["lossy"] or (image["syntax"] in _LOSSY[:2]) for image in images)
    if lossy:
        message = f"{lossy} of {len(images)} files have been compressed with loss; train on the original images if there are any"
        faults.append(Fault(code=Code.DICOM_LOSSY, message=message, severity="warning"))
    return faults


def _obstacle(image: dict[str, Any]) -> str | None:
    if image["syntax"] not in (*_NATIVE, *_GDCM):
        name = uid_name(image["syntax"]) if image["syntax"] else "none"
        return f"transfer syntax {name if name != image['syntax'] else 'unknown'} is not read"
    if image["lut"]:
        return "values come from a Modality LUT, not from slope and intercept"
    if image["allocated"] not in (8, 16, 32) or not 0 < image["stored"] <= image["allocated"] or image["high_bit"] != image["stored"] - 1:
        return f"pixels of {image['stored']} bits, the highest at {image['high_bit']}, in {image['allocated']} bits are not read"
    return None


def write_nifti(series: Series, grid: Grid, target: Path, *, beat: Callable[[], None], workers: Workers | None = None) -> None:
    """Convert a series whose grid is known, in a sandboxed process.

    Values are ``stored * RescaleSlope + RescaleIntercept``, with each slice's own numbers: Hounsfield units for CT, activity (not
    SUV) for PET, what the scanner says for MR. They are int16 if all of them are integers and fit, else float32. Axes are the
    grid's; the affine is the grid's in NIfTI's RAS. The header holds nothing else of the DICOM files.

    Args:
        series: Series with ``Instance.image``.
        grid: Voxel grid of that series.
        target: ``.nii.gz`` file, written completely or not at all.
        beat: Called as a heartbeat; may raise to stop.
        workers: Workers to convert with; starts its own if None.

    Raises:
        SeriesRefused: Pixels cannot be decoded, a file changed since the scan, or decoding hangs or crashes.
    """
    if workers is None:
        with dicom_workers(1) as own:
            return write_nifti(series, grid, target, beat=beat, workers=own)
    mib = size_of(instance.path for instance in series.instances) / (1 << 20)
    try:
        answer = workers.call(
            "convert",
            request(series, grid, target),
            timeout_s=_LEAST_S + mib / _SLOWEST_MIB_S,
            memory_mib=memory_mib(series, grid),
            beat=beat,
        )
    except Broken as broken:
        raise SeriesRefused([Fault(code=Code.DICOM_UNREADABLE, message=f"cannot be converted: {broken}; export it again")]) from None
    if answer["faults"]:
        raise SeriesRefused([Fault(**fault) for fault in answer["faults"]])
    return None


def request(series: Series, grid: Grid, target: Path) -> dict[str, Any]:
    """Build the argument of :func:`task`: the slices in their verified order."""
    by_uid = {instance.sop_uid: instance for instance in series.instances}
    usual = usual_bits(series)
    uids = grid.sop_uids * len(grid.frames) if grid.frames else grid.sop_uids
    return {
        "slices": [
            {
                "path": os.path.realpath(by_uid[uid].path),
                "sha256": by_uid[uid].sha256,
                "frame": frame - 1,
                **_scale(by_uid[uid].image, frame),
                "number": by_uid[uid].number,
                "usual": usual,
            }
            for uid, frame in zip(uids, grid.frames or (1,) * len(uids), strict=True)
        ],
        "shape": list(grid.shape),
        "affine": grid.affine.tolist(),
        "target": str(target),
    }


def _scale(image: dict[str, Any], frame: int) -> dict[str, float]:
    plane = image["planes"][frame - 1]
    return {"slope": 1.0 if plane["slope"] is None else plane["slope"], "intercept": plane["intercept"] or 0.0}


def memory_mib(series: Series, grid: Grid) -> int:
    """Return the memory that a conversion may use: doubles of all voxels, the result, one or two files, and the libraries."""
    voxels = grid.shape[0] * grid.shape[1] * grid.shape[2]
    return 1024 + (voxels * 24 >> 20) + 2 * (max(size_of([instance.path]) for instance in series.instances) >> 20)


def task(data: dict[str, Any]) -> dict[str, Any]:
    """Convert in the sandbox; return ``{"faults": [...]}``, empty when the file is written."""
    columns, rows, count = data["shape"]
    values = np.empty((columns, rows, count), dtype=np.float64, order="F")
    faults = []
    path, frames = "", np.empty((0, rows, columns), dtype=np.int16)
    for index, item in enumerate(data["slices"]):
        try:
            if item["path"] != path:
                frames = _stored(item["path"], item["sha256"], item["usual"])
                path = item["path"]
            if frames.shape[1:] != (rows, columns) or item["frame"] >= len(frames):
                sizes = " x ".join(map(str, frames.shape))
                raise Undecodable(f"its pixels decode to {sizes} (frames, rows, columns), not to {rows} rows and {columns} columns")
            values[:, :, index] = frames[item["frame"]].T * item["slope"] + item["intercept"]
        except Undecodable as refused:
            message = f"slice {index + 1} of {count}: {refused}"
            file = f"file {item['number']}" if item["number"] else None
            faults.append({"code": Code.DICOM_PIXELS, "message": message, "file": file})
            path = ""
            if len(faults) == 10:
                break
    if not faults:
        write_volume(_smallest(values), np.array(data["affine"]), Path(data["target"]))
    return {"faults": faults}


def _smallest(values: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    limits = np.iinfo(np.int16)
    if values.min() >= limits.min and values.max() <= limits.max:
        whole = values.astype(np.int16)
        if np.array_equal(whole, values):
            return whole
    return values.astype(np.float32)


def write_volume(array: npt.NDArray[Any], affine: npt.NDArray[np.float64], target: Path) -> None:
    """Write voxels (i, j, k) with an LPS affine as write-protected ``.nii.gz``, the same bytes for the same content."""
    import nibabel

    image = nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    temporary = temporary_beside(target)
    try:
        with open(temporary, "xb") as raw:
            with gzip.GzipFile(fileobj=raw, filename="", mode="wb", compresslevel=3, mtime=0) as file:
                file.write(image.to_bytes())
            raw.flush()
            os.fsync(raw.fileno())
            read_only(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def stored_values(path: Path) -> Stored:
    """Return the stored values (frame, row, column) of one file, before RescaleSlope and RescaleIntercept."""
    return _stored(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), None)


def _stored(path: str, sha256: str, usual: Sequence[Any] | None) -> Stored:
    """Return the stored values (frame, row, column) of a file that has not changed since the scan.

    Args:
        usual: Stored bits and sign of the series' other slices if slices differ; both must then give the same values.
    """
    with open(path, "rb") as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Undecodable("the file changed while it was read; run again when the source no longer changes")
    dataset = read_file(io.BytesIO(data), specific_tags=[*_PIXELS, "NumberOfFrames"])
    if "PixelData" not in dataset:
        raise Undecodable("there are no pixels in the file")
    syntax = dataset.file_meta.TransferSyntaxUID
    bits, signed = int(dataset.BitsStored), dataset.PixelRepresentation == 1
    if usual and syntax in _NATIVE:
        dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1  # else pydicom would cut off the upper bits
    try:
        array = dataset.pixel_array if syntax in _NATIVE else _decompressed(dataset, syntax)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise almost any error; their messages may quote the file
        raise Undecodable("its pixels cannot be decoded; the file may be cut off, export it again") from error
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if array.size % (rows * columns) or array.size == 0:
        raise Undecodable("its pixels are not what rows and columns say; the file may be cut off, export it again")
    frames = array.reshape(-1, rows, columns)
    values = _sign_extended(frames, bits, signed=signed)
    if usual and (bits, signed) != tuple(usual) and not np.array_equal(values, _sign_extended(frames, usual[0], signed=usual[1])):
        raise Undecodable(
            f"its pixels are said to be {_bits(bits, signed)}, those of most other slices {_bits(*usual)}, and its values depend on it; "
            "export the original images"
        )
    return values


def _bits(stored: int, signed: bool) -> str:
    return f"{'signed' if signed else 'unsigned'} numbers of {stored} bits"


def _sign_extended(array: npt.NDArray[Any], stored: int, *, signed: bool) -> Stored:
    """Return only the stored bits, as numbers, since old files keep overlays in the bits above them."""
    bits = array.dtype.itemsize * 8
    whole: Stored = array.astype(np.dtype(f"{'i' if signed else 'u'}{array.dtype.itemsize}"), copy=False)
    return whole << (bits - stored) >> (bits - stored) if stored < bits else whole


def _decompressed(dataset: Dataset, syntax: UID) -> npt.NDArray[Any]:
    """Decode by GDCM, through SimpleITK, from a copy that holds nothing but the pixels.

    GDCM must decode and not interpret: it ignores the rescale of some modalities and applies it to others, and inverts MONOCHROME1.
    The copy holds nothing to interpret, so that its stored values come back unchanged.
    """
    import SimpleITK

    copy = Dataset()
    for keyword in _PIXELS:
        if keyword in dataset:
            copy[keyword] = dataset[keyword]
    copy.PhotometricInterpretation = "MONOCHROME2"
    copy.NumberOfFrames = int(dataset.get("NumberOfFrames") or 1)
    copy.SOPClassUID = _SECONDARY_CAPTURE[1 if dataset.BitsAllocated == 8 else 2]
    copy.SOPInstanceUID, copy.StudyInstanceUID, copy.SeriesInstanceUID = generate_uid(), generate_uid(), generate_uid()
    copy.Modality = "OT"
    copy.file_meta = FileMetaDataset()
    copy.file_meta.TransferSyntaxUID = syntax
    copy.file_meta.MediaStorageSOPClassUID, copy.file_meta.MediaStorageSOPInstanceUID = copy.SOPClassUID, copy.SOPInstanceUID
    with tempfile.TemporaryDirectory(prefix="nnunet-pixels-") as private:
        name = str(Path(private) / "pixels.dcm")
        copy.save_as(name, enforce_file_format=True)
        image = SimpleITK.ReadImage(name, imageIO="GDCMImageIO")
    array: npt.NDArray[Any] = SimpleITK.GetArrayFromImage(image)
    expected = copy.NumberOfFrames * int(copy.Rows) * int(copy.Columns)
    if array.size != expected:
        raise ValueError(f"{array.size} values instead of {expected}")
    return array
