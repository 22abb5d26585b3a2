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
        ((36, 52, 37), np.eye(4), "differs from (36, 52, 38)"),
        ((36, 52, 38), np.diag([1, 1, 2, 1]), "mm differs"),
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
