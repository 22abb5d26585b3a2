"""Converted voxels and where they lie, against dcm2niix and pydicom's own arrays, on the real series and on made ones."""

import shutil
import subprocess
from pathlib import Path

import nibabel  # noqa: TID253
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dicom.convert import pixel_faults, write_nifti
from nnunet_jobs.dicom.geometry import SeriesRefused, grid_of
from support.dicom import OBLIQUE, by_dcm2niix, by_pydicom, canonical, multiframe, save, scanned, slices, voxels, workers

needs_dcm2niix = pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="the Debian package dcm2niix is not installed")
needs_dcmtk = pytest.mark.skipif(shutil.which("dcmcjpeg") is None, reason="the Debian package dcmtk is not installed")


def converted(folder: Path, target: Path) -> Path:
    [series] = scanned(folder).series
    assert [fault for fault in pixel_faults(series) if fault.severity == "error"] == []
    write_nifti(series, grid_of(series), target, beat=lambda: None, workers=workers())
    return target


def refused(folder: Path) -> list[Fault]:
    [series] = scanned(folder).series
    with pytest.raises(SeriesRefused) as error:
        write_nifti(series, grid_of(series), folder.parent / "x.nii.gz", beat=lambda: None, workers=workers())
    assert not list(folder.parent.glob("*.nii.gz"))
    return list(error.value.faults)


def same(ours: Path, other: tuple[np.ndarray, np.ndarray], *, tolerance: float = 0.0) -> None:
    values, affine = canonical(ours)
    np.testing.assert_allclose(affine, other[1], atol=2e-3)
    np.testing.assert_allclose(values, other[0], atol=tolerance, rtol=0)


@needs_dcm2niix
@pytest.mark.parametrize("name", ["12-T1post-05670", "13_HCropVolume", "14_HCropVolume"])
def test_real_series_are_what_two_other_readers_say(test_data: Path, tmp_path: Path, name: str) -> None:
    folder = test_data / "dicom" / name
    ours = converted(folder, tmp_path / "a.nii.gz")
    image = nibabel.load(ours)
    assert image.get_data_dtype() == np.int16
    values, affine = by_pydicom(folder)
    np.testing.assert_array_equal(np.asarray(image.dataobj), values)
    np.testing.assert_allclose(image.affine, affine, atol=1e-3)
    same(ours, by_dcm2niix(folder, tmp_path / "other"))


@needs_dcm2niix
@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), OBLIQUE])
def test_ct_in_hounsfield_units_in_every_orientation(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    stored = voxels() + 1024
    made = slices(orientation=orientation, stored=stored, RescaleIntercept=-1024)
    folder = save(tmp_path / "in", [made[index] for index in (3, 0, 6, 2, 5, 1, 4)])
    ours = converted(folder, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(nibabel.load(ours).dataobj), stored - 1024)
    same(ours, by_dcm2niix(folder, tmp_path / "other"))


@needs_dcm2niix
def test_pet_rescales_each_slice_by_its_own_slope(tmp_path: Path) -> None:
    stored = np.abs(voxels())
    made = slices(modality="PT", stored=stored, Units="BQML")
    slopes = [0.5 + 0.37 * k for k in range(7)]
    slopes[0] = 1.0  # a reader that takes its type from the first slice would cut the others to integers
    for ds, slope in zip(made, slopes, strict=True):
        ds.RescaleSlope = f"{slope:.6g}"
    folder = save(tmp_path / "in", made)
    ours = converted(folder, tmp_path / "a.nii.gz")
    image = nibabel.load(ours)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(np.asarray(image.dataobj), stored * np.array(slopes), rtol=1e-6)
    same(ours, by_pydicom_canonical(folder), tolerance=1e-3)
    same(ours, by_dcm2niix(folder, tmp_path / "other"), tolerance=0.5)  # dcm2niix keeps 16 bits of such a series


def by_pydicom_canonical(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    values, affine = by_pydicom(folder)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, affine))
    return np.asarray(image.dataobj), image.affine


def test_mr_with_rescale_is_rescaled(tmp_path: Path) -> None:
    """GDCM leaves the rescale of MR out; what the scanner says counts."""
    made = slices(modality="MR", RescaleSlope=2, RescaleIntercept=5)
    ours = converted(save(tmp_path / "in", made), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(nibabel.load(ours).dataobj), voxels().astype(int) * 2 + 5)


@needs_dcm2niix
def test_multi_frame_in_any_order_with_rescale_per_frame(tmp_path: Path) -> None:
    made, order = slices(orientation=OBLIQUE), [4, 2, 0, 6, 1, 3, 5]
    slopes, intercepts = [1, 2, 3, 1, 2, 3, 1], [0, -5, 7, 0, 0, 1, 2]
    one = multiframe(made, order=order, per_frame={"slope": slopes, "intercept": intercepts})
    ours = converted(save(tmp_path / "in", [one]), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(nibabel.load(ours).dataobj), voxels().astype(int) * slopes + intercepts)
    plain = save(tmp_path / "plain", [multiframe(made, order=order)])
    same(converted(plain, tmp_path / "b.nii.gz"), by_dcm2niix(plain, tmp_path / "other"))


def test_only_the_stored_bits_count(tmp_path: Path) -> None:
    """12 bits in 16, signed, with an overlay's bit set above them as old scanners did."""
    stored = np.clip(voxels(), -2000, 2000)
    made = slices(stored=stored, BitsStored=12, HighBit=11)
    for k, ds in enumerate(made):
        raw = (stored[:, :, k].T.astype(np.int32) & 0x0FFF) | 0x4000
        ds.PixelData = np.ascontiguousarray(raw.astype(np.uint16)).tobytes()
    ours = converted(save(tmp_path / "in", made), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(nibabel.load(ours).dataobj), stored)


def test_unsigned_values_that_do_not_fit_become_float(tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 65535, (24, 20, 7)).astype(np.uint16)
    made = slices(stored=stored.view(np.int16), PixelRepresentation=0)
    image = nibabel.load(converted(save(tmp_path / "in", made), tmp_path / "a.nii.gz"))
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(image.dataobj), stored)


# --- compressed -------------------------------------------------------------------------------------------------------
def by_pydicom_encoder(syntax: str):
    def compress(path: Path) -> None:
        ds = pydicom.dcmread(path)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(path)

    return compress


def by_dcmtk(*command: str):
    def compress(path: Path) -> None:
        subprocess.run([*command, str(path), f"{path}.new"], check=True, capture_output=True)
        path.with_name(f"{path.name}.new").replace(path)

    return compress


def by_simpleitk(path: Path) -> None:
    """JPEG 2000 as GDCM writes it, put into the file instead of its pixels."""
    import SimpleITK

    ds = pydicom.dcmread(path)
    image = SimpleITK.GetImageFromArray(ds.pixel_array)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG2000")
    writer.SetFileName(f"{path}.new.dcm")
    writer.Execute(image)
    other = pydicom.dcmread(f"{path}.new.dcm")
    assert other.file_meta.TransferSyntaxUID == JPEG2000Lossless
    ds["PixelData"] = other["PixelData"]
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.save_as(path)
    Path(f"{path}.new.dcm").unlink()


COMPRESSIONS = {
    "RLE": by_pydicom_encoder(RLELossless),
    "JPEG lossless SV1": by_dcmtk("dcmcjpeg", "+e1"),
    "JPEG lossless": by_dcmtk("dcmcjpeg", "+el"),
    "JPEG-LS": by_dcmtk("dcmcjpls"),
    "JPEG 2000": by_simpleitk,
    "deflated": by_dcmtk("dcmconv", "+td"),
    "big endian": by_dcmtk("dcmconv", "+tb"),
    "implicit": by_dcmtk("dcmconv", "+ti"),
}


@needs_dcmtk
@pytest.mark.parametrize("how", COMPRESSIONS)
@pytest.mark.parametrize("signed", [True, False])
def test_compressed_pixels_come_out_as_they_were(tmp_path: Path, how: str, signed: bool) -> None:
    stored = voxels() if signed else np.abs(voxels())
    made = slices(stored=stored, PixelRepresentation=int(signed), RescaleIntercept=-7, BitsStored=13, HighBit=12)
    folder = save(tmp_path / "in", made)
    for path in folder.iterdir():
        COMPRESSIONS[how](path)
    syntaxes = {pydicom.dcmread(path).file_meta.TransferSyntaxUID.name for path in folder.iterdir()}
    assert syntaxes != {"Explicit VR Little Endian"}
    ours = converted(folder, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(nibabel.load(ours).dataobj), stored - 7)


@needs_dcmtk
def test_a_compressed_multi_frame_object(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", [multiframe(slices(), order=[6, 5, 4, 3, 2, 1, 0])])
    COMPRESSIONS["JPEG-LS"](next(folder.iterdir()))
    ours = converted(folder, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(nibabel.load(ours).dataobj), voxels())


@needs_dcmtk
def test_lossy_images_are_read_and_warned_of(tmp_path: Path) -> None:
    smooth = np.add.outer(np.add.outer(np.arange(24) * 40, np.arange(20) * 30), np.arange(7) * 10).astype(np.int16)
    folder = save(tmp_path / "in", slices(stored=smooth, PixelRepresentation=0, BitsStored=12, HighBit=11))
    for path in folder.iterdir():
        by_dcmtk("dcmcjpeg", "+ee")(path)
    [series] = scanned(folder).series
    assert [(fault.code, fault.severity) for fault in pixel_faults(series)] == [("dicom_lossy", "warning")]
    ours = converted(folder, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(np.asarray(nibabel.load(ours).dataobj), smooth, atol=40)


# --- refused ----------------------------------------------------------------------------------------------------------
def test_fault_38_a_slice_that_is_cut_off_is_named_by_its_number(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", slices())
    data = (folder / "002.dcm").read_bytes()
    (folder / "002.dcm").write_bytes(data[:-300])
    [fault] = refused(folder)
    assert (fault.code, "slice 3 of 7" in fault.message, "002" in fault.message) == ("dicom_pixels", True, False)


@needs_dcmtk
@pytest.mark.parametrize("how", ["JPEG lossless SV1", "JPEG-LS", "JPEG 2000", "RLE"])
def test_fault_38_a_compressed_slice_that_is_cut_off(tmp_path: Path, how: str) -> None:
    folder = save(tmp_path / "in", slices())
    COMPRESSIONS[how](folder / "002.dcm")
    data = (folder / "002.dcm").read_bytes()
    (folder / "002.dcm").write_bytes(data[: len(data) - 400])
    [fault] = refused(folder)
    assert (fault.code, "slice 3 of 7" in fault.message) == ("dicom_pixels", True)


def test_fault_39_a_file_that_changed_since_the_scan(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", slices())
    [series] = scanned(folder).series
    save(folder, slices(stored=voxels(seed=5)))
    with pytest.raises(SeriesRefused, match="changed while it was read"):
        write_nifti(series, grid_of(series), tmp_path / "x.nii.gz", beat=lambda: None, workers=workers())


def odd(ds: Dataset, **values: object) -> Dataset:
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"HighBit": 11, "BitsStored": 10}, "pixels of 10 bits, the highest at 11"),
        ({"ModalityLUTSequence": [Dataset()]}, "Modality LUT"),
    ],
)
def test_pixels_of_odd_kinds_are_refused_by_their_headers(tmp_path: Path, values: dict[str, object], says: str) -> None:
    folder = save(tmp_path / "in", [odd(ds, **values) for ds in slices()])
    [series] = scanned(folder).series
    [fault] = pixel_faults(series)
    assert (fault.code, fault.severity, says in fault.message) == ("dicom_pixels", "error", True)


def test_the_nifti_header_holds_nothing_of_the_patient_and_the_bytes_are_reproducible(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", slices(patient="CANARY", PatientName="CANARY^X", series="CANARY"))
    first = converted(folder, tmp_path / "a.nii.gz").read_bytes()
    assert first == converted(folder, tmp_path / "b.nii.gz").read_bytes()
    header = nibabel.load(tmp_path / "a.nii.gz").header
    for name in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        assert bytes(header[name]).strip(b"\0") == b"", name
    assert not nibabel.load(tmp_path / "a.nii.gz").header.extensions
    assert (tmp_path / "a.nii.gz").stat().st_mode & 0o777 == 0o444
