"""The generated dataset: reproducible, sound, and with something to learn."""

import hashlib
from pathlib import Path

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pytest

from devtools.testbed.data import register_dataset, tree
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.dataset.phantom import phantom_case, write_phantom


def test_same_arguments_give_the_same_bytes(tmp_path):
    write_phantom(tmp_path / "a", cases=3, seed=7)
    write_phantom(tmp_path / "b", cases=3, seed=7)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_cases_stay_the_same_when_more_are_written(tmp_path):
    write_phantom(tmp_path / "few", cases=2, seed=7)
    write_phantom(tmp_path / "more", cases=4, seed=7)
    few, more = tree(tmp_path / "few"), tree(tmp_path / "more")
    assert all(more[name] == data for name, data in few.items() if name != "dataset.json")


def test_another_seed_gives_other_cases():
    first, second = (hashlib.sha256(phantom_case(seed, 0)[0].tobytes()).hexdigest() for seed in (1, 2))
    assert first != second


def test_both_parts_are_there_and_darker_than_the_tissue_around(tmp_path):
    write_phantom(tmp_path / "p", cases=6, seed=3)
    for number in range(6):
        image = nibabel.load(tmp_path / "p" / "imagesTr" / f"phantom_{number:03d}.nii.gz")
        label = nibabel.load(tmp_path / "p" / "labelsTr" / f"phantom_{number:03d}.nii.gz")
        assert image.get_data_dtype() == np.float32
        assert label.get_data_dtype() == np.uint8
        assert image.header.get_zooms() == (1, 1, 1)
        assert not np.allclose(image.affine[:3, :3], np.eye(3))
        np.testing.assert_array_equal(image.affine, label.affine)
        voxels, values = image.get_fdata(), np.asarray(label.dataobj)
        assert set(np.unique(values)) == {0, 1, 2}
        tissue = voxels[values == 0].mean()
        for part in (1, 2):
            assert 500 < (values == part).sum() < 8000
            assert voxels[values == part].mean() < 0.9 * tissue


def test_several_channels_are_one_4d_file_and_register_split(tmp_path, workspace):
    write_phantom(tmp_path / "p", cases=2, seed=1, channels=3, size=(20, 24, 20))
    assert nibabel.load(tmp_path / "p" / "imagesTr" / "phantom_000.nii.gz").shape[3] == 3
    result = register_dataset(workspace, tmp_path / "p", holdout_fraction=0.0)
    assert len(list((Path(result["path"]) / "imagesTr").iterdir())) == 6


def test_an_existing_folder_is_never_written_into(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="is there already"):
        write_phantom(tmp_path / "p", cases=1, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("wrong", [{"cases": 0}, {"seed": -1}, {"channels": 9}, {"size": (4, 4, 4)}])
def test_numbers_out_of_range_are_named(tmp_path, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        write_phantom(tmp_path / "p", **{"cases": 1, "seed": 1, **wrong})
