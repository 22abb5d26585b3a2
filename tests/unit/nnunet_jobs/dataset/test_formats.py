"""Files other than NIfTI: read as nnU-Net reads them, damage is seen, and nnU-Net takes the registered result."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK  # noqa: TID253  the rule is for what Airflow imports
import tifffile
from PIL import Image

from devtools.testbed.data import LABELS, SHAPE, image_array, label_array, register_dataset
from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.dataset.readers.formats import read_volume
from nnunet_jobs.dataset.readers.volume import Volume

READERS = {".mha": "SimpleITKIO", ".nrrd": "SimpleITKIO", ".png": "NaturalImage2DIO", ".bmp": "NaturalImage2DIO", ".tiff": "Tiff3DIO"}


def read(path: Path, *, label: bool = False) -> Volume:
    return read_volume(path, case="c", name=path.name, label=label, beat=lambda: None, keep=True)


def codes(path: Path, *, label: bool = False) -> list[str]:
    return [str(fault.code) for fault in read(path, label=label).faults]


def itk_image(array: np.ndarray) -> SimpleITK.Image:
    """x, y, z order in; an oblique place in the world."""
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((12.5, -3, 40))
    angle = 0.3
    image.SetDirection((np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1))
    return image


def write_itk(path: Path, array: np.ndarray, *, packed: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(itk_image(array), str(path), useCompression=packed)
    return path


def colours(seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (14, 10, channels), dtype=np.uint8)


def grey_label() -> np.ndarray:
    label = np.zeros((14, 10), np.uint8)
    label[3:8, 2:6], label[9:, 7:] = 1, 2
    return label


# --- one file -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_mha_and_nrrd_are_read_as_nibabel_would_read_the_same_image(tmp_path, ending, packed, dtype):
    array = (image_array(1) if dtype[0] == "f" else np.abs(image_array(1)) // 2).astype(dtype)
    volume = read(write_itk(tmp_path / f"i{ending}", array, packed=packed))
    same = read(write_itk(tmp_path / "i.nii.gz", array.astype(np.float64)))
    assert volume.faults == []
    assert volume.shape == SHAPE
    assert volume.spacing == pytest.approx(same.spacing)
    np.testing.assert_allclose(volume.affine, same.affine, atol=1e-5)
    np.testing.assert_array_equal(volume.array, array)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.999])
def test_cut_mha_and_nrrd_are_seen(tmp_path, ending, packed, keep):
    path = write_itk(tmp_path / f"i{ending}", image_array(1), packed=packed)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    assert codes(path) in (["truncated"], ["not_readable"] if keep == 0.2 else [])  # the header itself may be cut


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_damaged_packed_voxels_are_seen(tmp_path, ending):
    path = write_itk(tmp_path / f"i{ending}", image_array(1))
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)
    assert codes(path)[0] in ("gzip_damaged", "truncated")


def test_a_header_that_names_another_file_is_not_followed(tmp_path):
    write_itk(tmp_path / "i.mha", image_array(1), packed=False)
    data = (tmp_path / "i.mha").read_bytes()
    (tmp_path / "i.mha").write_bytes(data.replace(b"ElementDataFile = LOCAL", b"ElementDataFile = /etc/passwd"))
    assert codes(tmp_path / "i.mha") == ["path_outside"]
    for former, later in (
        (b"NDims = 3", b"NDims = 39999"),
        (b"NDims = 3\n", b""),
        (b"DimSize = ", b"DimSize = 1 "),
        (b"NDims = 3", b"NDims = 3\nNDims = 3"),
    ):
        (tmp_path / "i.mha").write_bytes(data.replace(former, later))
        assert codes(tmp_path / "i.mha") == ["not_readable"], later
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 8 10 6\nencoding: raw\nendian: little\ndata file: /etc/passwd\n\n"
    (tmp_path / "i.nrrd").write_bytes(header)
    assert codes(tmp_path / "i.nrrd") == ["path_outside"]


def test_vectors_and_four_dimensions_are_refused(tmp_path):
    vector = SimpleITK.GetImageFromArray(np.zeros((6, 10, 8, 3), np.float32), isVector=True)
    SimpleITK.WriteImage(vector, str(tmp_path / "v.mha"))
    SimpleITK.WriteImage(vector, str(tmp_path / "v.nrrd"))
    SimpleITK.WriteImage(SimpleITK.Image([4, 5, 6, 2], SimpleITK.sitkFloat32), str(tmp_path / "four.mha"))
    assert codes(tmp_path / "v.mha") == codes(tmp_path / "v.nrrd") == ["dtype"]
    assert codes(tmp_path / "four.mha") == ["not_3d"]


def test_zero_spacing_and_nan_in_mha(tmp_path):
    path = write_itk(tmp_path / "i.mha", image_array(1))
    path.write_bytes(re.sub(rb"ElementSpacing = \S+", b"ElementSpacing = 0", path.read_bytes()))
    assert codes(path) == ["spacing_invalid"]
    broken = image_array(1)
    broken[1, 2, 3] = np.nan
    assert codes(write_itk(tmp_path / "n.nrrd", broken)) == ["value_nan"]


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_pictures_have_colours_as_channels(tmp_path, ending):
    Image.fromarray(colours()).save(tmp_path / f"i{ending}")
    volume = read(tmp_path / f"i{ending}")
    assert (volume.faults, volume.shape, volume.channels) == ([], (10, 14, 1), 3)
    np.testing.assert_array_equal(volume.array[..., 0, :], colours().transpose(1, 0, 2))
    Image.fromarray(grey_label()).save(tmp_path / f"l{ending}")
    label = read(tmp_path / f"l{ending}", label=True)
    assert (label.faults, label.shape, label.values) == ([], (10, 14, 1), (0, 1, 2))


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".tiff"])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.98])
def test_cut_pictures_are_seen(tmp_path, ending, keep):
    path = tmp_path / f"i{ending}"
    if ending == ".tiff":
        tifffile.imwrite(path, image_array(1), compression="zlib")
    else:
        Image.fromarray(colours()).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    assert codes(path)[0] in ("truncated", "not_readable")


def test_a_flipped_bit_in_a_png_is_seen(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "i.png")
    data = bytearray((tmp_path / "i.png").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "i.png").write_bytes(data)
    assert codes(tmp_path / "i.png") == ["checksum_wrong"]


def test_a_palette_is_no_label(tmp_path):
    Image.fromarray(grey_label()).convert("P").save(tmp_path / "l.png")
    assert codes(tmp_path / "l.png", label=True) == ["dtype"]
    Image.fromarray(colours()).save(tmp_path / "rgb.png")
    assert codes(tmp_path / "rgb.png", label=True) == ["dtype"]


def test_3d_tiff_takes_its_spacing_from_the_file_beside_it(tmp_path):
    stack = image_array(1).transpose(2, 1, 0)
    tifffile.imwrite(tmp_path / "c_0000.tiff", stack)
    assert codes(tmp_path / "c_0000.tiff") == ["spacing_assumed"]
    (tmp_path / "c.json").write_text('{"spacing": [2.5, 0.8, 0.7]}')
    volume = read(tmp_path / "c_0000.tiff")
    assert (volume.faults, volume.shape, volume.spacing) == ([], SHAPE, (0.7, 0.8, 2.5))
    np.testing.assert_array_equal(volume.array, image_array(1))
    (tmp_path / "c.json").write_text('{"spacing": [2.5, 0.8]}')
    assert codes(tmp_path / "c_0000.tiff") == ["spacing_invalid"]
    tifffile.imwrite(tmp_path / "flat.tiff", stack[0])
    assert codes(tmp_path / "flat.tiff") == ["not_3d"]


def test_what_nnunet_does_not_read_is_said(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "i.jpg")
    assert codes(tmp_path / "i.jpg") == ["ending_unsupported"]


# --- whole datasets -------------------------------------------------------------------------------------------------
def picture_dataset(root: Path, ending: str, *, cases: int = 3) -> Path:
    for number in range(cases):
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        image, label = root / "imagesTr" / f"p{number}_0000{ending}", root / "labelsTr" / f"p{number}{ending}"
        if ending in (".mha", ".nrrd"):
            write_itk(image, image_array(number))
            write_itk(label, label_array())
        elif ending == ".tiff":
            for path, array in ((image, image_array(number)), (label, label_array())):
                tifffile.imwrite(path, array.transpose(2, 1, 0), compression="zlib")
            for folder in ("imagesTr", "labelsTr"):
                (root / folder / f"p{number}.json").write_text('{"spacing": [2.5, 0.8, 0.7]}')
        else:
            Image.fromarray(colours(number)).save(image)
            Image.fromarray(grey_label()).save(label)
    channels = 3 if READERS[ending] == "NaturalImage2DIO" else 1
    data = {"channel_names": {str(n): "RGB"[n] for n in range(channels)}, "labels": LABELS, "numTraining": cases, "file_ending": ending}
    (root / "dataset.json").write_text(json.dumps(data))
    return root


@pytest.mark.parametrize("ending", READERS)
def test_stock_nnunet_accepts_the_registered_dataset(tmp_path, workspace, ending):
    result = register_dataset(workspace, picture_dataset(tmp_path / "s", ending), holdout_fraction=0.0)
    assert result["train"] == 3
    folder = Path(result["path"])
    assert json.loads((folder / "dataset.json").read_text())["file_ending"] == ending
    script = (
        "import sys; from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity\n"
        "if __name__ == '__main__': verify_dataset_integrity(sys.argv[1], 1)\n"
    )
    (tmp_path / "verify.py").write_text(script)
    environment = {**os.environ, **workspace.nnunet_environment(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "verify.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "verify_dataset_integrity Done" in done.stdout
    assert READERS[ending] in done.stdout
    assert "WARNING" not in done.stdout
    assert register_dataset(workspace, tmp_path / "s", holdout_fraction=0.0)["already_done"]


def test_the_manifest_knows_files_and_channels(tmp_path, workspace):
    register_dataset(workspace, picture_dataset(tmp_path / "s", ".png"), holdout_fraction=0.0)
    entry = workspace.manifest("Dataset004_Small")["cases"]["p0"]
    assert (len(entry["images"]), entry["channels"], entry["shape"]) == (1, 3, [10, 14, 1])


def test_a_changed_spacing_file_is_a_change(tmp_path, workspace):
    source = picture_dataset(tmp_path / "s", ".tiff")
    register_dataset(workspace, source, holdout_fraction=0.0)
    for folder in ("imagesTr", "labelsTr"):
        (source / folder / "p1.json").write_text('{"spacing": [3.0, 0.8, 0.7]}')
    result = register_dataset(workspace, source, holdout_fraction=0.0)
    assert result["changed"] == 1
    assert json.loads((Path(result["path"]) / "labelsTr" / "p1.json").read_text()) == {"spacing": [3.0, 0.8, 0.7]}


def test_colours_that_do_not_fit_channel_names(tmp_path, workspace):
    source = picture_dataset(tmp_path / "s", ".png")
    Image.fromarray(colours(1, 4)).save(source / "imagesTr" / "p1_0000.png")
    Image.fromarray(grey_label()).save(source / "imagesTr" / "p2_0000.png")
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert {(fault.code, fault.case, fault.file) for fault in caught.value.faults} == {
        ("channel_extra", "p1", "imagesTr/p1_0000.png"),
        ("channel_missing", "p2", "imagesTr/p2_0000.png"),
    }


def test_formats_are_not_mixed(tmp_path, workspace):
    source = picture_dataset(tmp_path / "s", ".mha")
    write_itk(source / "labelsTr" / "p1.nii.gz", label_array())
    (source / "labelsTr" / "p1.mha").unlink()
    description = json.loads((source / "dataset.json").read_text())
    description["dataset"] = {
        f"p{n}": {"images": [f"imagesTr/p{n}_0000.mha"], "label": f"labelsTr/p{n}{'.nii.gz' if n == 1 else '.mha'}"} for n in range(3)
    }
    (source / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert {(fault.code, fault.case, fault.file) for fault in caught.value.faults} == {("ending_mixed", "p1", "labelsTr/p1.nii.gz")}
