"""The summary of a case: right numbers, a picture with outlines in the right place, and no odd content that stops it."""

import base64
import io
import json
import math
import re
import time

import numpy as np
import pytest

from nnunet_jobs.report.summary import summarise_case


def picture(summary):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(summary["picture"]["data"]))))


def covered(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Pixels inside an outline: walking along a row, each vertical edge changes between outside and inside."""
    edges = np.zeros((shape[0], shape[1] + 1), dtype=bool)
    for x, y, length in re.findall(r"M(\d+) (\d+)v(\d+)", path):
        edges[int(y) : int(y) + int(length), int(x)] = True
    return np.logical_xor.accumulate(edges, axis=1)[:, :-1]


def test_numbers_are_those_of_the_arrays():
    image = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    label = np.zeros((4, 5, 6), dtype=np.uint8)
    label[1:3, 1:4, 2] = 1
    label[0, 0, 3] = 2
    summary = summarise_case([image], label, (1.0, 2.0, 5.0))
    assert summary["shape"] == [4, 5, 6]
    assert summary["labels"] == {"1": {"voxels": 6, "ml": 0.06}, "2": {"voxels": 1, "ml": 0.01}}
    (channel,) = summary["channels"]
    assert (channel["min"], channel["max"], channel["mean"], channel["percentiles"][2]) == (0, 119, 59.5, 59.5)
    assert sum(channel["histogram"]) == pytest.approx(1000, abs=2)
    assert summary["picture"]["slice"] == 2
    assert summary["picture"]["size_mm"] == [4, 10]
    json.dumps(summary, allow_nan=False)


def test_the_outline_encloses_just_the_labelled_pixels():
    label = np.zeros((9, 12, 3), dtype=np.int16)
    label[2:6, 3:9, 1] = 1
    label[3, 4, 1] = 0
    label[4:7, 7:10, 1] = 2
    summary = summarise_case([np.ones((9, 12, 3))], label, (1, 1, 1))
    assert list(summary["picture"]["contours"]) == ["1", "2"]
    for value, path in summary["picture"]["contours"].items():
        assert np.array_equal(covered(path, (12, 9)), int(value) == label[:, :, 1].T)


def test_a_small_lesion_survives_downsampling():
    label = np.zeros((500, 400, 2), dtype=np.uint8)
    label[333, 111, 1] = 1
    summary = summarise_case([np.zeros((500, 400, 2))], label, (0.5, 0.5, 5))
    assert (summary["picture"]["pixels"], summary["picture"]["slice"]) == ([96, 96], 1)
    assert covered(summary["picture"]["contours"]["1"], (96, 96)).sum() == 1


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "SRA"])
def test_with_an_affine_the_patients_right_is_on_the_left_and_anterior_on_top(codes):
    import nibabel.orientations as orientations

    image = np.zeros((10, 20, 30))
    image[7:, 15:, :] = 100  # right, anterior
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes))
    affine = orientations.inv_ornt_aff(turn, image.shape)
    summary = summarise_case([orientations.apply_orientation(image, turn)], None, (1, 1, 1), affine=affine)
    shown = picture(summary)
    assert summary["picture"]["view"] == "axial"
    assert shown.shape == (20, 10)
    assert shown[0, 0] > 200 > 50 > max(shown[0, -1], shown[-1, 0], shown[-1, -1])


def test_thick_slices_are_shown_from_the_side_they_were_taken():
    summary = summarise_case([np.zeros((8, 30, 40))], None, (6.5, 0.5, 0.5), affine=np.diag([6.5, 0.5, 0.5, 1]))
    assert summary["picture"]["view"] == "sagittal"
    assert summary["picture"]["size_mm"] == [15, 20]


def test_three_channels_of_a_photograph_become_a_colour_picture():
    red = np.full((20, 10, 1), 200, dtype=np.uint8)
    summary = summarise_case([red, red // 4, red * 0], None, (1, 1, 999))
    assert picture(summary)[5, 5].tolist() == [200, 50, 0]
    assert summary["picture"]["pixels"] == [20, 10]


def test_hounsfield_units_get_a_window_of_their_own():
    image = np.full((30, 30, 4), -1000, dtype=np.int16)
    image[5:25, 5:25] = 40
    image[10, 10] = 2000
    shown = picture(summarise_case([image], None, (1, 1, 3)))
    assert shown[0, 0] == 0
    assert 100 < shown[15, 15] < 150


ODD = {
    "constant": ([np.full((5, 6, 7), 3)], np.zeros((5, 6, 7), dtype=np.uint8), (1, 1, 1)),
    "one voxel": ([np.ones((1, 1, 1))], np.ones((1, 1, 1)), (1, 1, 1)),
    "two dimensions": ([np.eye(5)], np.eye(5), (1, 1)),
    "one dimension": ([np.arange(5)], None, (1,)),
    "four dimensions": ([np.zeros((3, 4, 5, 2))], None, (1, 1, 1)),
    "nothing": ([], None, ()),
    "no voxels": ([np.zeros((0, 4, 5))], np.zeros((0, 4, 5)), (1, 1, 1)),
    "label only": ([], np.ones((3, 3, 3)), (1, 1, 1)),
    "not finite": ([np.full((4, 4, 4), np.nan), np.full((4, 4, 4), np.inf)], np.full((4, 4, 4), np.nan), (1, 1, 1)),
    "partly finite": ([np.array([[[1, np.nan], [np.inf, -np.inf]]])], None, (1, 1, 1)),
    "huge numbers": ([np.array([[[-1.7e308, 1.7e308], [0, 1]]])], None, (1, 1, 1)),
    "odd labels": ([np.zeros((2, 2, 2))], np.array([[[-1, 0.5], [1e9, 1]], [[np.inf, 2], [0, -0.0]]]), (1, 1, 1)),
    "other label shape": ([np.zeros((2, 2, 2))], np.ones((3, 2, 2)), (1, 1, 1)),
    "other channel shape": ([np.zeros((4, 4, 1)), np.zeros((5, 4, 1)), np.zeros((4, 4, 1))], None, (1, 1, 1)),
    "no spacing": ([np.zeros((2, 2, 2))], np.ones((2, 2, 2)), (0, math.nan, -1)),
    "booleans": ([np.eye(4, dtype=bool)], np.eye(4, dtype=bool), (1, 1, 1)),
    "complex": ([np.zeros((4, 4, 4), dtype=complex)], np.zeros((4, 4, 4), dtype=complex), (1, 1, 1)),
    "noise for labels": ([np.zeros((96, 96, 2))], np.random.default_rng(0).integers(0, 99, (96, 96, 2)), (1, 1, 1)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_content_gives_a_summary(name):
    images, label, spacing = ODD[name]
    summary = summarise_case(images, label, spacing)
    assert len(json.dumps(summary, allow_nan=False)) < 40_000
    if name == "odd labels":
        assert summary["labels"] == {"1": {"voxels": 1, "ml": 0.001}, "2": {"voxels": 1, "ml": 0.001}}


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(2)])
def test_an_unusable_affine_is_left_aside(affine):
    assert summarise_case([np.zeros((3, 4, 5))], None, (1, 1, 1), affine=affine)["picture"]["pixels"] == [3, 4]


def test_a_large_case_is_quick_and_its_memory_small():
    image = np.zeros((512, 512, 200), dtype=np.int16, order="F")
    label = np.zeros((512, 512, 200), dtype=np.uint8, order="F")
    label[100:200, 100:200, 50:60] = 3
    started = time.process_time()
    summary = summarise_case([image], label, (0.7, 0.7, 1.5))
    assert time.process_time() - started < 10
    assert summary["labels"]["3"]["voxels"] == 100_000
    assert len(json.dumps(summary)) < 20_000
