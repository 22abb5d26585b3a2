"""Surface metrics against shapes whose distances are known, a comparison of all pairs, and DeepMind's surface-distance."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_jobs.metrics.nearest import Nearest
from nnunet_jobs.metrics.surface_elements import Lattice, areas
from nnunet_jobs.metrics.surfaces import surface_metrics

Array = np.ndarray[Any, Any]
UNDEFINED = ("dice", "nsd", "hd95_mm", "mean_surface_distance_mm")


def box(shape: Sequence[int], *sides: tuple[int, int], value: int = 1) -> Array:
    array = np.zeros(shape, np.uint8)
    array[tuple(slice(*side) for side in sides)] = value
    return array


def ball(size: int, radius_mm: float, spacing: Sequence[float]) -> Array:
    axes = np.ogrid[tuple(slice(0, round(size / step)) for step in spacing)]
    squares = [((axis + 0.5) * step - size / 2) ** 2 for axis, step in zip(axes, spacing, strict=True)]
    return (sum(squares) <= radius_mm**2).astype(np.uint8)


def all_pairs(reference: Array, prediction: Array, spacing: Sequence[float], tolerance_mm: float) -> dict[str, float]:
    """The definitions, cell by cell and pair by pair."""
    weight_of, sets = areas(spacing), []
    for mask in (np.pad(reference, 1), np.pad(prediction, 1)):
        points = []
        for cell in itertools.product(*(range(length - 1) for length in mask.shape)):
            voxels = [bool(mask[tuple(np.add(cell, corner))]) for corner in itertools.product((0, 1), repeat=mask.ndim)]
            if any(voxels) and not all(voxels):
                points.append((np.multiply(cell, spacing), weight_of[sum(inside << bit for bit, inside in enumerate(voxels))]))
        sets.append(points)
    directed = []
    for points, others in (sets, sets[::-1]):
        directed.append(sorted((min(math.dist(place, other) for other, _ in others), weight) for place, weight in points))
    area = sum(weight for found in directed for _, weight in found)
    percentiles = []
    for found in directed:
        total, reached = sum(weight for _, weight in found), 0.0
        for distance, weight in found:
            reached += weight
            if reached >= 0.95 * total * (1 - 1e-12):
                percentiles.append(distance)
                break
    return {
        "nsd": sum(weight for found in directed for distance, weight in found if distance <= tolerance_mm + 1e-6) / area,
        "hd95_mm": max(percentiles),
        "mean_surface_distance_mm": sum(distance * weight for found in directed for distance, weight in found) / area,
    }


def random_pair(seed: int, axes: int) -> tuple[Array, Array, list[float], float]:
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    shape = random.integers(2, 8, axes)
    reference = (gaussian_filter(random.normal(size=shape), 1.0) > 0).astype(np.uint8) + (random.random(shape) < 0.2)
    prediction = np.where(random.random(shape) < 0.85, reference, random.integers(0, 3, shape)).astype(np.uint8)
    if seed % 3 == 0:
        prediction = np.roll(prediction, 3, axis=0)
    return reference, prediction, [float(step) for step in random.uniform(0.3, 4, axes)], float(random.uniform(0, 3))


@settings(deadline=None, max_examples=40)  # one with all its pairs takes a tenth of a second, more under load
@given(seed=st.integers(0, 2**32 - 1), axes=st.sampled_from([2, 3]))
def test_random_shapes_agree_with_a_comparison_of_all_pairs(seed: int, axes: int) -> None:
    reference, prediction, spacing, tolerance = random_pair(seed, axes)
    found = surface_metrics(reference, prediction, spacing, [1, 2, (1, 2)], tolerance_mm=tolerance)
    for label in (1, 2, (1, 2)):
        masks = np.isin(reference, label), np.isin(prediction, label)
        if not all(mask.any() for mask in masks):
            continue
        overlap = 2 * np.count_nonzero(masks[0] & masks[1]) / sum(np.count_nonzero(mask) for mask in masks)
        assert found[label]["dice"] == pytest.approx(overlap)
        for name, expected in all_pairs(*masks, spacing, tolerance).items():
            assert found[label][name] == pytest.approx(expected, abs=1e-9), (label, name)


@pytest.mark.parametrize("seed", range(12))
def test_the_numbers_are_those_of_deepminds_package(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    distance = pytest.importorskip("surface_distance")
    for name, value in (("Inf", np.inf), ("NaN", np.nan)):  # the package's names, which NumPy 2 has dropped
        monkeypatch.setattr(np, name, value, raising=False)
    reference, prediction, spacing, tolerance = random_pair(seed, 3)
    found = surface_metrics(reference, prediction, spacing, [1], tolerance_mm=tolerance)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of scipy.ndimage.filters
        theirs = distance.compute_surface_distances(np.pad(reference == 1, 1), np.pad(prediction == 1, 1), spacing)
    assert found["nsd"] == pytest.approx(distance.compute_surface_dice_at_tolerance(theirs, tolerance))
    assert found["hd95_mm"] == pytest.approx(distance.compute_robust_hausdorff(theirs, 95))
    means = distance.compute_average_surface_distance(theirs)
    weights = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
    assert found["mean_surface_distance_mm"] == pytest.approx(np.average(means, weights=weights))


def test_the_area_of_every_cell_is_that_of_deepminds_table() -> None:
    tables = pytest.importorskip("surface_distance.lookup_tables")
    spacing, order = (3.0, 1.1, 0.7), np.arange(256)
    mirrored = sum((order >> bit & 1) << (7 - bit) for bit in range(8))  # its bits run the other way
    assert areas(spacing) == pytest.approx(tables.create_table_neighbour_code_to_surface_area(spacing)[mirrored])
    mirrored = sum((order[:16] >> bit & 1) << (3 - bit) for bit in range(4))
    assert areas(spacing[:2]) == pytest.approx(tables.create_table_neighbour_code_to_contour_length(spacing[:2])[mirrored])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.8, 0.8), (0.5, 0.5, 0.5)])
def test_concentric_balls_are_as_far_apart_as_their_radii(spacing: tuple[float, float, float]) -> None:
    """A slanted surface passes a layer of cells, and the nearest of them is up to 0.6 voxels nearer; finer voxels come closer to 6 mm."""
    inner, outer = ball(64, 18, spacing), ball(64, 24, spacing)
    found = surface_metrics(inner, outer, spacing, [1], tolerance_mm=3)[1]
    assert found["mean_surface_distance_mm"] == pytest.approx(6, abs=0.6 * max(spacing))
    assert found["hd95_mm"] == pytest.approx(6, abs=0.6 * max(spacing))
    assert found["nsd"] == 0
    assert surface_metrics(inner, outer, spacing, [1], tolerance_mm=6 + max(spacing))[1]["nsd"] == 1
    assert found["reference_ml"] == pytest.approx(4 / 3 * math.pi * 1.8**3, rel=0.01)
    assert found["volume_difference_relative"] == pytest.approx((24 / 18) ** 3 - 1, rel=0.01)


@pytest.mark.parametrize("far", [1, 2, 3, 9, 20])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_slab_is_as_far_away_as_it_was_shifted(axis: int, far: int) -> None:
    spacing, sides = (3.0, 0.7, 1.2), [(0, 6), (0, 6), (0, 6)]
    shape = [6, 6, 6]
    shape[axis] = 40
    sides[axis] = (3, 4)
    shifted = list(sides)
    shifted[axis] = (3 + far, 4 + far)
    distance = far * spacing[axis]
    found = surface_metrics(box(shape, *sides), box(shape, *shifted), spacing, [1], tolerance_mm=distance)[1]
    assert found["hd95_mm"] == pytest.approx(distance)
    assert found["nsd"] == 1, "a distance of exactly the tolerance is within it"
    assert found["volume_difference_ml"] == 0
    assert surface_metrics(box(shape, *sides), box(shape, *shifted), spacing, [1], tolerance_mm=distance * 0.99)[1]["nsd"] < 1


def test_the_surface_of_a_box_has_its_area() -> None:
    """NSD of one face: a box that is longer by four voxels has four faces and the other end in common."""
    spacing = (2.0, 1.0, 0.5)
    short, long = box((40, 40, 40), (5, 25), (5, 25), (5, 25)), box((40, 40, 40), (5, 29), (5, 25), (5, 25))
    found = surface_metrics(short, long, spacing, [1], tolerance_mm=0.4)[1]
    sides = [2 * (20 * 1 + 20 * 0.5) * height + 2 * 20 * 10 for height in (40, 48)]
    wrong = 2 * (20 * 1 + 20 * 0.5) * 8 + 2 * 20 * 10  # what is added of the sides, and both ends
    assert found["nsd"] == pytest.approx(1 - wrong / sum(sides), abs=0.02)
    assert found["volume_difference_ml"] == pytest.approx(4 * 400 / 1000)


def test_equal_segmentations_are_perfect_in_every_type_of_array() -> None:
    array = box((5, 6, 7), (0, 3), (2, 6), (1, 4), value=3)
    for kind, order in itertools.product((np.uint8, np.int16, np.float32, np.uint64), "CF"):
        found = surface_metrics(array.astype(kind, order=order), array, (1, 2, 3), [3])[3]
        assert (found["dice"], found["nsd"], found["hd95_mm"], found["mean_surface_distance_mm"]) == (1, 1, 0, 0)
    large = array.astype(np.int32) * 20000
    assert surface_metrics(large, large, (1, 2, 3), [60000])[60000]["nsd"] == 1


def test_a_label_that_neither_has_is_undefined() -> None:
    found = surface_metrics(box((4, 4, 4), (1, 2), (1, 2), (1, 2)), box((4, 4, 4), (1, 2), (1, 2), (1, 2)), (1, 1, 1), [1, 2])
    assert set(found[2].values()) == {None}
    nothing = np.zeros((4, 4, 4), np.uint8)
    assert set(surface_metrics(nothing, nothing, (1, 1, 1), [1])[1].values()) == {None}


def test_a_missed_or_invented_label_has_no_overlap_and_infinite_distances() -> None:
    something, nothing = box((9, 9, 9), (1, 6), (1, 5), (1, 6)), np.zeros((9, 9, 9), np.uint8)
    missed, invented = (surface_metrics(*pair, (1, 1, 1), [1])[1] for pair in ((something, nothing), (nothing, something)))
    for found in (missed, invented):
        assert [found[name] for name in UNDEFINED] == [0, 0, None, None]
    assert missed["volume_difference_ml"] == pytest.approx(-0.1)
    assert missed["volume_difference_relative"] == -1
    assert invented["volume_difference_ml"] == pytest.approx(0.1)
    assert invented["volume_difference_relative"] is None


def test_what_the_reference_ignores_counts_nowhere() -> None:
    reference = box((12, 12, 12), (2, 10), (2, 10), (2, 6))
    reference[:, :, 6:] = 9
    cut, prediction = reference.copy(), box((12, 12, 12), (2, 10), (2, 10), (2, 11))
    found = surface_metrics(reference, prediction, (1, 1, 1), [1], ignore_label=9)[1]
    assert (found["dice"], found["nsd"], found["hd95_mm"], found["volume_difference_ml"]) == (1, 1, 0, 0)
    assert (reference == cut).all(), "the arrays that were given are unchanged"
    prediction[2, 2, 2] = 9  # a prediction has no voxel to ignore
    assert surface_metrics(reference, prediction, (1, 1, 1), [1], ignore_label=9)[1]["dice"] == pytest.approx(1 - 1 / 511)


def test_an_axis_of_one_voxel_is_compared_in_the_plane() -> None:
    reference, prediction = box((20, 30), (5, 15), (5, 20)), box((20, 30), (5, 15), (8, 23))
    flat = surface_metrics(reference, prediction, (1.0, 0.5), [1], tolerance_mm=1)[1]
    solid = surface_metrics(reference[:, None], prediction[:, None], (1.0, 5.0, 0.5), [1], tolerance_mm=1)[1]
    for name in UNDEFINED:
        assert flat[name] == solid[name]
    assert flat["hd95_mm"] == 1.5
    assert flat["reference_ml"] is None
    assert solid["reference_ml"] == pytest.approx(150 * 2.5 / 1000)
    assert flat["volume_difference_relative"] == solid["volume_difference_relative"] == 0


@pytest.mark.parametrize(
    ("shapes", "spacing", "said"),
    [
        (((3, 3, 3), (3, 3, 4)), (1, 1, 1), "different shapes"),
        (((3, 3, 3), (3, 3, 3)), (1, 1), "do not fit"),
        (((3, 3, 3), (3, 3, 3)), (1, 0, 1), "more than 0 mm"),
    ],
)
def test_what_cannot_be_compared_is_refused(shapes: tuple[Any, Any], spacing: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        surface_metrics(np.zeros(shapes[0]), np.zeros(shapes[1]), spacing, [1])
    with pytest.raises(ValueError, match="labels are 0 to 65535"):
        surface_metrics(np.full((2, 2, 2), -1), np.zeros((2, 2, 2)), (1, 1, 1), [1])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.6, 1.1)])
def test_far_distances_are_those_of_a_search_tree(spacing: tuple[float, float, float]) -> None:
    from scipy.spatial import cKDTree

    random = np.random.default_rng(5)
    lattice = Lattice(shape=(40, 50, 60), spacing=spacing, margin=2)
    size = math.prod(lattice.shape)
    voxels = np.zeros(lattice.shape, bool)
    voxels[:-2, :-2, :-2] = True  # the margin behind them holds no cell
    for low, high, few in ((0, 0.3, 0.6), (0.2, 0.8, 0.5), (0.1, 0.11, 0.9)):
        cells, targets = (np.flatnonzero((random.random(size) < share) & voxels.ravel()) for share in (0.03, 0.01))
        cells = cells[cells > few * size]
        targets = targets[(targets > low * size) & (targets < high * size)]
        expected = cKDTree(lattice.place(targets)).query(lattice.place(cells))[0]
        assert Nearest(lattice)(cells, targets) == pytest.approx(expected)
