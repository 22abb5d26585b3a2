"""Which series are one regular volume, where its voxels lie, and by which name every other one is refused."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from nnunet_jobs.dicom.geometry import SeriesRefused, grid_of
from support.dicom import OBLIQUE, SHAPE, codes_of, multiframe, save, scanned, slices, voxels


def moved(datasets: list[Dataset], index: int, by: tuple[float, float, float]) -> list[Dataset]:
    position = np.array(datasets[index].ImagePositionPatient, float) + by
    datasets[index].ImagePositionPatient = [f"{value:.6f}" for value in position]
    return datasets


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), OBLIQUE])
def test_voxels_lie_where_the_tags_say(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    made = slices(orientation=orientation)
    [series] = scanned(save(tmp_path, made[::-1])).series
    grid = grid_of(series)
    assert grid.shape == SHAPE
    np.testing.assert_allclose(grid.spacing, (0.7, 0.8, 2.5), rtol=1e-4)
    assert np.linalg.det(grid.affine[:3, :3]) > 0
    for k, ds in enumerate(made):
        assert grid.sop_uids[k] == ds.SOPInstanceUID
        np.testing.assert_allclose((grid.affine @ [0, 0, k, 1])[:3], np.array(ds.ImagePositionPatient, float), atol=1e-3)
        across = (grid.affine @ [23, 0, k, 1] - grid.affine @ [0, 0, k, 1])[:3]
        np.testing.assert_allclose(across, 23 * 0.7 * np.array(orientation[:3]), atol=1e-2)


def test_file_names_and_instance_numbers_mean_nothing(tmp_path: Path) -> None:
    made = slices()
    shuffled = [made[index] for index in (3, 0, 6, 2, 5, 1, 4)]
    for number, ds in enumerate(shuffled):
        ds.InstanceNumber = number
    [series] = scanned(save(tmp_path, shuffled)).series
    expected = tuple(ds.SOPInstanceUID for ds in made)
    assert grid_of(series).sop_uids == expected
    assert tuple(instance.sop_uid for instance in series.instances) == expected


def test_a_series_made_by_hand_is_read_when_needed(tmp_path: Path) -> None:
    from dataclasses import replace

    [series] = scanned(save(tmp_path, slices())).series
    bare = replace(series, instances=tuple(replace(instance, image={}) for instance in series.instances))
    np.testing.assert_array_equal(grid_of(bare).affine, grid_of(series).affine)


def test_coordinates_rounded_by_the_scanner_pass(tmp_path: Path) -> None:
    made = slices(spacing=(0.7, 0.8, 0.625))
    for ds in made:
        ds.ImagePositionPatient = [f"{float(value):.2f}" for value in ds.ImagePositionPatient]
    assert codes_of(save(tmp_path, made)) == []


def test_frames_in_any_order_are_sorted(tmp_path: Path) -> None:
    made = slices()
    order = [4, 2, 0, 6, 1, 3, 5]
    save(tmp_path, [multiframe(made, order=order)])
    [series] = scanned(tmp_path).series
    grid = grid_of(series)
    assert [order[frame - 1] for frame in grid.frames] == list(range(7))
    assert grid.sop_uids == (series.instances[0].sop_uid,)
    np.testing.assert_allclose((grid.affine @ [0, 0, 6, 1])[:3], np.array(made[6].ImagePositionPatient, float), atol=1e-3)


# --- refused by name --------------------------------------------------------------------------------------------------
def without_third(made: list[Dataset]) -> list[Dataset]:
    return made[:2] + made[3:]


def twice(made: list[Dataset]) -> list[Dataset]:
    return made + slices(series="series")[:1]


def second_volume(made: list[Dataset]) -> list[Dataset]:
    return made + [changed(ds, SOPInstanceUID=f"{ds.SOPInstanceUID[:-3]}9.{number}") for number, ds in enumerate(slices())]


def one_again(made: list[Dataset]) -> list[Dataset]:
    return [*made, changed(slices()[2], SOPInstanceUID="1.2.3")]


def changed(ds: Dataset, **values: object) -> Dataset:
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def sagittal_too(made: list[Dataset]) -> list[Dataset]:
    return made + [changed(ds, SOPInstanceUID=f"1.2.{n}") for n, ds in enumerate(slices(orientation=(0, 1, 0, 0, 0, -1))[:3])]


def tilted(made: list[Dataset]) -> list[Dataset]:
    for k in range(len(made)):
        moved(made, k, (0, 0.5 * k, 0))
        made[k].GantryDetectorTilt = 11.3
    return made


def wider(made: list[Dataset]) -> list[Dataset]:
    ds = slices(stored=voxels((30, 20, 7)))[3]
    return [*made[:3], ds, *made[4:]]


def colour(made: list[Dataset]) -> list[Dataset]:
    for ds in made:
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        ds.PixelData = bytes(24 * 20 * 3)
    return made


def no_position(made: list[Dataset]) -> list[Dataset]:
    del made[4].ImagePositionPatient
    return made


def bad_orientation(made: list[Dataset]) -> list[Dataset]:
    return [changed(ds, ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0]) for ds in made]


@pytest.mark.parametrize(
    ("spoil", "codes", "says"),
    [
        (without_third, ["dicom_slice_missing"], "1 after slice 2"),
        (lambda made: [*made[:2], *made[4:]], ["dicom_slice_missing"], "2 after slice 2"),
        (second_volume, ["dicom_several_volumes"], "14 slices lie at 7 positions"),
        (one_again, ["dicom_slice_duplicate"], "8 slices lie at 7 positions"),
        (lambda made: moved(made, 3, (0, 0, 0.4)), ["dicom_spacing_varies"], "from 2.100 to 2.900 mm"),
        (tilted, ["dicom_tilt"], "leans by 11.31 degrees"),
        (sagittal_too, ["dicom_orientation_mixed"], "2 orientations (7, 3 slices)"),
        (wider, ["dicom_matrix_varies"], "6 of 24 x 20, 1 of 30 x 20"),
        (lambda made: [changed(made[0], PixelSpacing=[0.9, 0.9]), *made[1:]], ["dicom_matrix_varies"], "pixel spacings differ"),
        (colour, ["dicom_colour"], "colour"),
        (lambda made: made[:1], ["dicom_single_slice"], "single slice"),
        (no_position, ["dicom_geometry_missing"], "ImagePositionPatient missing or garbled in 1 of 7 slices (file "),
        (lambda made: [changed(ds, PixelSpacing=[0, 0]) for ds in made], ["dicom_matrix_varies"], "not more than 0"),
        (lambda made: [changed(ds, PixelSpacing=None) for ds in made], ["dicom_geometry_missing"], "missing or garbled in 7 of 7 slices;"),
        (bad_orientation, ["dicom_geometry_missing"], "perpendicular"),
        (lambda made: [multiframe(made), changed(multiframe(made), SOPInstanceUID="1.2.3")], ["dicom_several_volumes"], "2 objects"),
        (lambda made: [multiframe(made, order=[0, 1, 2, 3, 0, 1, 2])], ["dicom_slice_duplicate"], "7 slices lie at 4"),
        (lambda made: [changed(multiframe(made), NumberOfFrames=9)], ["dicom_geometry_missing"], "another number of frames"),
    ],
)  # fmt: skip
def test_fault_59_irregular_series_are_refused_by_name(tmp_path: Path, spoil, codes: list[str], says: str) -> None:
    save(tmp_path, spoil(slices()))
    assert codes_of(tmp_path) == codes
    [series] = scanned(tmp_path).series
    with pytest.raises(SeriesRefused) as refused:
        grid_of(series)
    assert says in str(refused.value)
