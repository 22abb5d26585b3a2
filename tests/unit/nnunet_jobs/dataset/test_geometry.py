"""Geometry: what nnU-Net's reader will refuse is refused, headers that contradict themselves and files that lie apart are named."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pytest
import SimpleITK  # noqa: TID253  the rule is for what Airflow imports

from devtools.testbed.data import SHAPE, image_array, label_array, raw, register_dataset, write_nifti
from nnunet_jobs.contract.failure import DataError, Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.check import check_dataset
from nnunet_jobs.dataset.foreseen_plans import unet_stages
from nnunet_jobs.dataset.readers.agreement import Member, disagreements, voxel_order
from nnunet_jobs.dataset.readers.formats import read_volume
from nnunet_jobs.dataset.readers.volume import Volume


def faults_of(source: Path, **params) -> list[Fault]:
    return list(check_dataset(source, params=RegisterParams(dataset_id=1, name="Any", source=str(source), **params), processes=1).faults)


def codes(source: Path, **params) -> list[tuple[str, str, str | None]]:
    return [(fault.code, fault.severity, fault.file) for fault in faults_of(source, **params)]


def read(path: Path, *, reader: str = "") -> Volume:
    return read_volume(path, case="c", name=path.name, label=False, beat=lambda: None, reader=reader)


def write(
    path: Path, sform: np.ndarray, qform: np.ndarray | None, *, codes: tuple[int, int] = (1, 1), pixdim=None, kind=nibabel.Nifti1Image
):
    """A NIfTI file whose header says what it is told, fitting or not. ``codes``: of sform and qform."""
    image = kind(image_array(1), sform)
    image.header.set_sform(sform, codes[0])
    image.header.set_qform(sform if qform is None else qform, codes[1] if qform is not None else 0, strip_shears=True)
    if pixdim:
        image.header["pixdim"][1:4] = pixdim
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(kind(image_array(1), None, image.header), path)
    return path


def sheared(cosine: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 1] = cosine
    return affine


def flipped() -> np.ndarray:
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = SHAPE[0] - 1
    return affine


def reader_takes(*paths: Path) -> bool:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    try:
        SimpleITKIO().read_images([str(path) for path in paths])
    except RuntimeError:
        return False
    return True


# --- the reader's own tolerance ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("cosine", [0, 1e-6, 1e-5, 5e-5, 1e-4, 1.5e-4, 2e-4, 5e-4, 9e-4])
def test_nearly_orthogonal_affines_get_the_verdict_of_nnunets_reader(tmp_path, cosine):
    alone = write(tmp_path / "alone.nii.gz", sheared(cosine), None)
    beside = write(tmp_path / "beside.nii.gz", sheared(cosine), np.eye(4))
    for path in (alone, beside):
        faults = read(path).faults
        assert (not [fault for fault in faults if fault.severity == "error"]) == reader_takes(path), (path.name, faults)
        assert read(path, reader="NibabelIO").faults == [], path.name  # which looks at no axis
    if not reader_takes(alone):
        [fault] = read(alone).faults
        assert fault.code == "affine_invalid"
        assert "ITK only supports orthonormal direction cosines" in fault.message


def test_nifti_2_is_refused_where_nnunets_reader_does(tmp_path):
    path = write(tmp_path / "two.nii.gz", np.eye(4), np.eye(4), kind=nibabel.Nifti2Image)
    assert not reader_takes(path)
    assert [fault.code for fault in read(path).faults] == ["reader_refuses"]
    assert read(path, reader="NibabelIO").faults == []


@pytest.mark.parametrize("difference", [1e-6, 5e-6, 2e-5, 2e-4, 2e-3])
def test_spacings_of_channels_are_compared_as_nnunets_reader_does(tmp_path, difference):
    source = raw(tmp_path / "s", ["a", "b"], channels=2)
    other = source / "imagesTr" / "a_0001.nii.gz"
    write_nifti(other, image_array(5), affine=np.diag([1 + difference, 1, 1, 1]))
    takes = reader_takes(source / "imagesTr" / "a_0000.nii.gz", other)
    found = faults_of(source)
    assert [(fault.code, fault.file) for fault in found] == ([] if takes else [("spacing_mismatch", "imagesTr/a_0001.nii.gz")])
    if not takes:
        assert f"{np.float32(1 + difference):.9g}" in found[0].message


def test_the_labels_spacing_keeps_the_datasets_tolerance(tmp_path, workspace):
    source = raw(tmp_path / "s", ["a", "b"])
    write_nifti(source / "labelsTr" / "a.nii.gz", label_array(), affine=np.diag([1.0002, 1, 1, 1]))
    assert faults_of(source) == []
    assert [fault.code for fault in faults_of(source, spacing_tolerance=1e-4)] == ["spacing_mismatch"]


def test_registration_refuses_with_the_same_faults_as_the_validator(tmp_path, workspace):
    source = raw(tmp_path / "s", ["a", "b"], channels=2)
    write(source / "imagesTr" / "a_0001.nii.gz", sheared(5e-4), None)
    write_nifti(source / "imagesTr" / "b_0001.nii.gz", image_array(5), affine=np.diag([1.0002, 1, 1, 1]))
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert {(fault.code, fault.file, fault.message) for fault in caught.value.faults} == {
        (fault.code, fault.file, fault.message) for fault in faults_of(source) if fault.severity == "error"
    }
    assert {fault.code for fault in caught.value.faults} == {"affine_invalid", "spacing_mismatch"}


def test_the_named_reader_decides(tmp_path):
    source = raw(tmp_path / "s", ["a", "b", "c"], overwrite_image_reader_writer="NibabelIO")
    for path in sorted(source.glob("*Tr/a*.nii.gz")):
        write(path, sheared(5e-4), None)
    write_nifti(source / "labelsTr" / "a.nii.gz", label_array(), affine=sheared(5e-4))
    assert faults_of(source) == []


def test_preprocessing_says_why_nnunets_reader_refused(tmp_path):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from nnunet_jobs.contract.storage.files import sha256_file
    from nnunet_jobs.preprocessing.cases import ReadCache, TrainingCase

    source = raw(tmp_path / "s", ["a", "b"], channels=2)
    near, skewed = source / "imagesTr" / "a_0001.nii.gz", source / "imagesTr" / "b_0001.nii.gz"
    write_nifti(near, image_array(5), affine=np.diag([1.0002, 1, 1, 1]))
    write(skewed, sheared(5e-4), None)
    for name, said in (("a", "spacing_mismatch [a a_0001.nii.gz]: has the spacing (1.0002"), ("b", "affine_invalid [b b_0001.nii.gz]")):
        images = tuple(source / "imagesTr" / f"{name}_{channel:04d}.nii.gz" for channel in range(2))
        label = source / "labelsTr" / f"{name}.nii.gz"
        hashes = tuple(map(sha256_file, (*images, label)))
        case = TrainingCase(name=name, images=images, label=label, hashes=hashes, group=name, shape=SHAPE, spacing=(1.0, 1.0, 1.0))
        with pytest.raises(DataError) as caught:
            ReadCache(SimpleITKIO, 0).read(case, keep=False)
        assert said in str(caught.value)
        assert caught.value.faults


# --- files of a case against each other -------------------------------------------------------------------------------
def member(name: str, *, shape=SHAPE, spacing=(1.0, 1.0, 1.0), shift: float = 0.0, label: bool = False) -> Member:
    affine = np.diag([*spacing, 1.0])
    affine[0, 3] = shift
    return Member(name=name, volume=Volume(shape=shape, spacing=spacing, affine=affine), label=label)


@pytest.mark.parametrize("odd", [{"shape": (9, 9, 9)}, {"spacing": (1.0, 1.0, 1.3)}, {"shift": 40.0}])
@pytest.mark.parametrize("place", range(4))
def test_the_one_odd_file_is_named_and_not_the_others(odd, place):
    files = [member(f"c_{number:04d}", **(odd if number == place else {})) for number in range(3)]
    files.append(member("c", label=True, **(odd if place == 3 else {})))
    assert [fault.file for fault in disagreements(files, case="c")] == [files[place].name]


def test_the_label_votes_where_two_channels_differ_by_little():
    files = [
        member("first", spacing=(0.9375,) * 3),
        member("second", spacing=(0.9377,) * 3),
        member("l", spacing=(0.9377,) * 3, label=True),
    ]
    assert [(fault.code, fault.file) for fault in disagreements(files, case="c")] == [("spacing_mismatch", "first")]


def test_a_turned_file_is_named_with_its_voxel_order():
    turned = Member(name="t", volume=Volume(shape=SHAPE, spacing=(1.0,) * 3, affine=flipped()))
    [fault] = disagreements([member("first"), member("second"), turned], case="c")
    assert (fault.code, fault.file) == ("affine_mismatch", "t")
    assert "voxel order is LAS, not RAS" in fault.message


# --- headers that contradict themselves -------------------------------------------------------------------------------
def moved(mm: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = mm
    return affine


@pytest.mark.parametrize(
    ("header", "severity"),
    [
        ({"qform": flipped()}, "warning"),
        ({"qform": flipped(), "codes": (2, 1)}, "warning"),
        ({"qform": moved(40)}, "warning"),
        ({"qform": moved(0.05)}, None),  # a twentieth of a voxel: rounding
        ({"qform": np.eye(4), "pixdim": (1, 1, 3)}, "error"),
        ({"qform": None, "pixdim": (2, 1, 1)}, "error"),
        ({"qform": np.eye(4), "pixdim": (1, 1, 3), "codes": (4, 1)}, "warning"),  # the sform leads to a standard brain
        ({"qform": flipped(), "codes": (0, 1)}, None),
        ({"qform": np.eye(4)}, None),
    ],
)
def test_fields_of_a_nifti_header_that_contradict_each_other(tmp_path, header, severity):
    path = write(tmp_path / "i.nii.gz", np.eye(4), header.pop("qform"), **header)
    assert [(fault.code, fault.severity) for fault in read(path).faults] == ([("geometry_contradicts", severity)] if severity else [])


def test_a_qform_that_is_no_rotation_is_named(tmp_path):
    path = write(tmp_path / "i.nii.gz", np.eye(4), np.eye(4))
    image = nibabel.load(path)
    image.header["quatern_b"], image.header["quatern_c"] = 2, 3
    nibabel.save(nibabel.Nifti1Image(image_array(1), None, image.header), tmp_path / "j.nii.gz")
    assert [fault.code for fault in read(tmp_path / "j.nii.gz").faults] == ["geometry_contradicts"]


@pytest.mark.parametrize(
    ("former", "later"),
    [
        (b"AnatomicalOrientation = RAI", b"AnatomicalOrientation = LPI"),
        (b"AnatomicalOrientation = RAI", b"AnatomicalOrientation = RIA"),
        (b"Offset = 0 0 0\n", b"Offset = 0 0 0\nPosition = 0 0 40\n"),
        (b"TransformMatrix = ", b"Orientation = -1 0 0 0 1 0 0 0 1\nTransformMatrix = "),
        (b"ElementSpacing = 1 1 1\n", b"ElementSpacing = 1 1 1\nElementSize = 1 1 3\n"),
    ],
)
def test_fields_of_a_metaimage_header_that_contradict_each_other(tmp_path, former, later):
    path = tmp_path / "i.mha"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image_array(1)), str(path))
    assert read(path).faults == []
    path.write_bytes(path.read_bytes().replace(former, later))
    assert [(fault.code, fault.severity) for fault in read(path).faults] == [("geometry_contradicts", "warning")]


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_the_orientation_that_itk_writes_is_never_a_contradiction(tmp_path, axes):
    for signs in itertools.product((1, -1), repeat=3):
        image = SimpleITK.GetImageFromArray(image_array(1))
        image.SetDirection((np.eye(3)[list(axes)] * signs).ravel().tolist())
        SimpleITK.WriteImage(image, str(tmp_path / "i.mha"))
        assert read(tmp_path / "i.mha").faults == []


# --- the dataset as a whole -------------------------------------------------------------------------------------------
def reoriented(source: Path, case: str, order: str) -> None:
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(np.eye(4)), nibabel.orientations.axcodes2ornt(tuple(order)))
    for path in (source / "imagesTr" / f"{case}_0000.nii.gz", source / "labelsTr" / f"{case}.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header).as_reoriented(turn), path)


@pytest.mark.parametrize("order", ["LPS", "PIR", "RAI"])
def test_mixed_voxel_orders_name_the_rarer_ones(tmp_path, order):
    source = raw(tmp_path / "s", ["a", "b", "c"])
    reoriented(source, "b", order)
    [fault] = faults_of(source)
    assert (fault.code, fault.severity, fault.case, fault.file) == ("voxel_order_mixed", "warning", "b", "imagesTr/b_0000.nii.gz")
    assert f"has the voxel order {order} where 2 of 3 cases have RAS" in fault.message
    assert codes(source, channel_names={"0": "CT"}) == [("voxel_order_mixed", "warning", "imagesTr/b_0000.nii.gz")]


def test_a_reader_that_reorients_takes_any_order(tmp_path):
    source = raw(tmp_path / "s", ["a", "b", "c"], overwrite_image_reader_writer="NibabelIOWithReorient")
    reoriented(source, "b", "PIR")
    assert faults_of(source) == []


def test_a_new_case_is_held_against_the_registered_voxel_order(tmp_path, workspace, caplog):
    source = raw(tmp_path / "s", ["a", "b"])
    register_dataset(workspace, source, holdout_fraction=0.0)
    assert {entry["order"] for entry in workspace.manifest("Dataset004_Small")["cases"].values()} == {"RAS"}
    raw(source, ["c"])
    reoriented(source, "c", "LPS")
    register_dataset(workspace, source, holdout_fraction=0.0)
    assert "voxel_order_mixed [c imagesTr/c_0000.nii.gz]: has the voxel order LAS" not in caplog.text
    assert "voxel_order_mixed [c imagesTr/c_0000.nii.gz]: has the voxel order LPS where 2 of 3 cases have RAS" in caplog.text


def test_voxel_orders_are_nibabels():
    assert [voxel_order(np.eye(4)), voxel_order(flipped()), voxel_order(None)] == ["RAS", "LAS", ""]


def slices(root: Path, shape: tuple[int, ...], spacing: tuple[float, ...], cases: str = "abc") -> Path:
    source = raw(root, list(cases))
    for number, case in enumerate(cases):
        write_nifti(source / "imagesTr" / f"{case}_0000.nii.gz", image_array(number, shape), affine=np.diag([*spacing, 1]))
        label = np.zeros(shape, np.uint8)
        label.ravel()[: label.size // 2] = 1
        label.ravel()[-3:] = 2
        write_nifti(source / "labelsTr" / f"{case}.nii.gz", label, affine=np.diag([*spacing, 1]))
    return source


@pytest.mark.parametrize(
    ("shape", "spacing", "good"),
    [
        ((40, 32, 1), (0.7, 0.7, 1.0), True),
        ((40, 32, 1), (1.0, 1.0, 1.0), True),
        ((40, 32, 1), (1.5, 1.5, 1.0), False),
        ((40, 32, 1), (0.5, 1.5, 1.0), False),
        ((1, 40, 32), (1.0, 1.0, 1.0), False),
        ((1, 40, 32), (3.0, 1.0, 1.0), True),
        ((40, 1, 32), (1.0, 1.1, 1.0), True),
        ((40, 1, 32), (1.0, 1.0, 1.1), False),
        ((40, 32), (1.5, 1.5, 1.0), True),  # nnU-Net's reader makes the slice thick itself
    ],
)
def test_slices_that_planning_would_cut_into_lines_are_named(tmp_path, shape, spacing, good):
    found = faults_of(slices(tmp_path / "s", shape, spacing))
    if good:
        assert found == []
    else:
        assert [(fault.code, fault.case) for fault in found] == [("slice_direction", case) for case in "abc"]
        assert "write the image with two axes, or give the slice a thickness larger than its pixels" in found[0].message


@pytest.mark.parametrize(("shape", "small"), [((7, 7, 7), True), ((10, 10, 10), True), ((14, 14, 14), True), ((16, 16, 16), False)])
def test_images_too_small_for_a_unet_are_named(tmp_path, shape, small):
    found = faults_of(slices(tmp_path / "s", shape, (1.0, 1.0, 1.0)))
    assert [(fault.code, fault.severity) for fault in found] == ([("image_small", "warning")] if small else [])
    if small:
        assert "pad images and labels to 16 voxels or more" in found[0].message


def test_stages_are_those_of_nnunets_planner():
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    rng = np.random.default_rng(0)
    for _ in range(400):
        axes = int(rng.integers(2, 4))
        shape, spacing = rng.integers(1, 70, axes), rng.choice([0.5, 0.7, 1.0, 1.9, 2.0, 5.0, 999.0], axes)
        assert unet_stages(shape, spacing) == len(get_pool_and_conv_props(spacing, shape, 4, 999999)[1]), (shape, spacing)
