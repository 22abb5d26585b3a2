"""Files that nnU-Net's reader would take without a word are refused before it sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_jobs.contract.failure import DataError, Interrupted
from nnunet_jobs.prediction.cases import Case, check_images


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    import nibabel as nib

    nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a_0000.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 500, (36, 52, 38)).astype(np.float32)
    save(path, voxels, np.eye(4))
    return path


def refused(*images: Path) -> str:
    with pytest.raises(DataError) as error:
        check_images(Case(case="a", images=images), file_ending=".nii.gz")
    assert {fault.case for fault in error.value.faults} == {"a"}
    return str(error.value)


def test_a_whole_image_is_accepted(image: Path) -> None:
    check_images(Case(case="a", images=(image, image)), file_ending=".nii.gz")


@pytest.mark.parametrize("lost", [1, 4, 8, 9, 1000])
def test_every_lost_byte_is_noticed(image: Path, lost: int) -> None:
    image.write_bytes(image.read_bytes()[:-lost])
    assert "ends early" in refused(image)


def test_every_flipped_bit_of_the_voxels_is_noticed(image: Path) -> None:
    content, random = image.read_bytes(), np.random.default_rng(1)
    for position in random.integers(400, len(content) - 8, 40):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(random.integers(8))
        image.write_bytes(flipped)
        assert "a_0000.nii.gz" in refused(image)


def test_every_fault_of_a_case_is_named(image: Path, tmp_path: Path) -> None:
    absent, infinite = tmp_path / "a_0001.nii.gz", tmp_path / "a_0002.nii.gz"
    voxels = np.zeros((36, 52, 38), dtype=np.float32)
    voxels[1, 2, 3] = np.inf
    save(infinite, voxels, np.eye(4))
    said = refused(image, absent, infinite)
    assert "a_0001.nii.gz" in said
    assert "infinite" in said


@pytest.mark.parametrize(
    ("shape", "affine", "said"),
    [
        ((36, 52, 37), np.eye(4), "has the shape (36, 52, 37) where a_0000.nii.gz has (36, 52, 38)"),
        ((36, 52, 38), np.diag([1, 1, 2, 1]), "has the spacing (1, 1, 2) mm where"),
        ((36, 52, 38, 2), np.eye(4), "one file a channel"),
    ],
)
def test_channels_must_lie_on_one_grid(image: Path, tmp_path: Path, shape: tuple[int, ...], affine: np.ndarray, said: str) -> None:
    other = tmp_path / "a_0001.nii.gz"
    save(other, np.ones(shape), affine)
    assert said in refused(image, other)


def test_a_stop_request_is_heard_while_a_file_is_read(image: Path) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        check_images(Case(case="a", images=(image,)), file_ending=".nii.gz", beat=stop)


def test_channels_that_do_not_lie_on_each_other_are_refused(image: Path, tmp_path: Path) -> None:
    away, turned = np.eye(4), np.diag([-1.0, 1.0, 1.0, 1.0])
    away[0, 3] = 40
    turned[0, 3] = 35
    voxels = np.random.default_rng(1).integers(0, 500, (36, 52, 38))
    for name, affine in (("moved", away), ("turned", turned)):
        other = tmp_path / f"{name}_0001.nii.gz"
        save(other, voxels, affine)
        assert f"affine_mismatch [{other.name}]" in refused(image, other)
    assert "40 mm away" in refused(image, tmp_path / "moved_0001.nii.gz")


def test_the_odd_channel_is_named_not_the_good_ones(image: Path, tmp_path: Path) -> None:
    away = np.eye(4)
    away[2, 3] = 40
    odd = tmp_path / "odd_0000.nii.gz"
    save(odd, np.random.default_rng(1).integers(0, 500, (36, 52, 38)), away)
    with pytest.raises(DataError) as error:
        check_images(Case(case="a", images=(odd, image, image, image)), file_ending=".nii.gz")
    assert [fault.file for fault in error.value.faults] == [odd.name]


def test_what_registration_warns_of_is_returned(tmp_path: Path) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 500, (36, 52, 38)).astype(np.float32), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 25
    image.set_qform(moved, code=1)
    image.set_sform(np.eye(4), code=1)
    path = tmp_path / "two_0000.nii.gz"
    nib.save(image, path)
    [warning] = check_images(Case(case="two", images=(path,)), file_ending=".nii.gz")
    assert (warning.code, warning.severity) == ("geometry_contradicts", "warning")
