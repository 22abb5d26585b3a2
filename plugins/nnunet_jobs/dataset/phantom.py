"""Makes a synthetic, learnable dataset for demonstrations and tests: bent two-part structures in textured tissue, Decathlon layout.

It looks a little like the hippocampus: a thick head (label 1, anterior) continues into a thinner tail (label 2, posterior). Both
are darker than the tissue around them and almost equal in intensity, so that a network must learn position and shape. Pose, size,
bend, intensity, bias field, texture and noise vary between cases. Case ``n`` of a seed does not depend on the number of cases.
"""

from __future__ import annotations

import gzip
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import temporary_beside, write_json

Array = npt.NDArray[np.float64]
LABELS = {"background": 0, "anterior": 1, "posterior": 2}
_CHANNELS = ("T1", "T2", "FLAIR", "PD")


def write_phantom(out: Path, *, cases: int, seed: int, channels: int = 1, size: tuple[int, int, int] = (36, 52, 38)) -> None:
    """Write ``cases`` images and labels in Medical Segmentation Decathlon layout; the same arguments give the same bytes.

    Images are float32, ``(x, y, z)`` or ``(x, y, z, channel)`` when ``channels`` is more than 1; labels are uint8. Spacing is
    1 mm, the affine a small rotation and shift that differ between cases.

    Args:
        out: Folder to make; it appears complete, by one rename.
        cases: Number of cases; ids begin at ``phantom_000``.
        seed: Seed of all random numbers.
        channels: 1 to 4 contrasts of the same anatomy.
        size: Mean voxels along x, y and z; each case differs by up to 2.

    Raises:
        ConfigError: ``out`` exists and is not empty, or a number is out of range.
    """
    import nibabel

    _check(out, cases, seed, channels, size)
    staging = temporary_beside(out)
    try:
        for folder in ("imagesTr", "labelsTr"):
            (staging / folder).mkdir(parents=True)
        for index in range(cases):
            image, label, affine = phantom_case(seed, index, channels=channels, size=size)
            name = f"phantom_{index:03d}.nii.gz"
            _write(nibabel, staging / "imagesTr" / name, image, affine)
            _write(nibabel, staging / "labelsTr" / name, label, affine)
        write_json(staging / "dataset.json", _description(cases, channels))
        if out.exists():
            out.rmdir()
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def phantom_case(
    seed: int, index: int, *, channels: int = 1, size: tuple[int, int, int] = (36, 52, 38)
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], Array]:
    """Make one case: image, label and affine (see :func:`write_phantom` for shapes and types)."""
    rng = np.random.default_rng([seed, index])
    shape = tuple(int(n + rng.integers(-2, 3)) for n in size)
    label, ventricle = _anatomy(rng, shape)
    gain = rng.uniform(0.6, 1.6)
    images = [_contrast(rng, label, ventricle, gain, channel) for channel in range(channels)]
    image = images[0] if channels == 1 else np.stack(images, axis=-1)
    return image, label, _affine(rng)


def _anatomy(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Make a label map and a dark cavity beside it."""
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij"), axis=-1)
    warped = grid + np.stack([_smooth(rng, shape, 5) for _ in range(3)], axis=-1) * 0.7
    extent = np.array(shape, dtype=np.float64)
    centre = extent * 0.5 + rng.uniform(-1.5, 1.5, 3)
    t = np.linspace(0.0, 1.0, 24)  # 0 is the front of the head, 1 the end of the tail
    arc = rng.uniform(0.11, 0.18)
    tilt, yaw = rng.uniform(-0.12, 0.12, 2)
    along = extent[1] * rng.uniform(0.60, 0.70)
    line = np.stack(
        [
            0.10 * extent[0] * (0.5 - t) + yaw * along * (0.5 - t),
            along * (0.5 - t),
            extent[2] * (0.36 * (t - 0.5) - arc * np.sin(np.pi * t)) + tilt * along * (0.5 - t),
        ],
        axis=-1,
    )
    thickness = extent.min() / 36 * rng.uniform(0.9, 1.1) * (6.4 - 1.3 * t - 0.7 * t**3)
    offset = warped - centre
    distance = np.stack(
        [np.linalg.norm((offset - point) * (0.85, 1.0, 1.0), axis=-1) / radius for point, radius in zip(line, thickness, strict=True)]
    )
    place = t[distance.argmin(axis=0)]
    inside = distance.min(axis=0) < 1
    split = rng.uniform(0.43, 0.46)
    label = np.where(inside, np.where(place < split, 1, 2), 0).astype(np.uint8)
    cavity = np.linalg.norm((offset - line[14] - (0.22 * extent[0], 0.0, 0.14 * extent[2])) / (4.0, 11.0, 3.5), axis=-1) < 1
    return label, cavity & ~inside


def _contrast(
    rng: np.random.Generator, label: npt.NDArray[np.uint8], cavity: npt.NDArray[np.bool_], gain: float, channel: int
) -> npt.NDArray[np.float32]:
    """Make the intensities of one channel, rounded to integers as scanners do."""
    shape = label.shape
    structure, fluid = ((240.0, 90.0), (620.0, 900.0), (600.0, 80.0), (370.0, 660.0))[channel]
    tissue = 460.0 + 30.0 * _smooth(rng, shape, 9) + 18.0 * _smooth(rng, shape, 14)
    inner = 0.35 * (tissue - 460.0) + structure
    tissue = np.where(label == 1, inner, np.where(label == 2, 1.15 * inner, tissue))
    tissue[cavity] = fluid
    for axis in range(3):  # partial volume: real borders are not sharp
        tissue = 0.25 * np.roll(tissue, 1, axis) + 0.5 * tissue + 0.25 * np.roll(tissue, -1, axis)
    bias = np.exp(0.08 * _smooth(rng, shape, 3))
    noisy = np.hypot(tissue * bias + rng.normal(0, 24, shape), rng.normal(0, 24, shape))  # Rician, as in magnitude MRI
    return np.asarray(np.rint(noisy * gain), dtype=np.float32)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], points: int) -> Array:
    """Make a smooth random field of standard deviation about 1 from ``points`` random values an axis, cosine-interpolated."""
    field = rng.normal(0, 1.5, (points, points, points))
    for axis, n in enumerate(shape):
        position = np.linspace(0, points - 1, n)
        low = np.minimum(position.astype(int), points - 2)
        weight = (0.5 - 0.5 * np.cos(np.pi * (position - low))).reshape([-1 if k == axis else 1 for k in range(3)])
        field = np.take(field, low, axis) * (1 - weight) + np.take(field, low + 1, axis) * weight
    return np.asarray(field)


def _affine(rng: np.random.Generator) -> Array:
    """Make an affine with a rotation of a few degrees about each axis, a shift in mm, and a spacing of 1 mm."""
    rotation = np.eye(3)
    for axis in range(3):
        c, s = np.cos(angle := rng.uniform(-0.12, 0.12)), np.sin(angle)
        step = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step[i, i], step[i, j], step[j, i], step[j, j] = c, -s, s, c
        rotation = np.einsum("ij,jk->ik", rotation, step)
    affine = np.eye(4)
    affine[:3, :3] = rotation
    affine[:3, 3] = np.round(rng.uniform(-30, 30, 3), 1)
    return affine


def _write(nibabel: Any, path: Path, array: npt.NDArray[Any], affine: Array) -> None:
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((1.0,) * array.ndim)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    plain = io.BytesIO()
    image.to_file_map({"image": nibabel.FileHolder(fileobj=plain)})
    path.write_bytes(gzip.compress(plain.getvalue(), 1, mtime=0))  # a time stamp would change the bytes


def _description(cases: int, channels: int) -> dict[str, Any]:
    names = [f"phantom_{index:03d}.nii.gz" for index in range(cases)]
    return {
        "name": "Phantom",
        "description": "generated two-part structures, no real patients",
        "reference": "airflow-provider-nnunet",
        "licence": "CC0-1.0",
        "release": "1.0",
        "tensorImageSize": "3D" if channels == 1 else "4D",
        "modality": {str(channel): _CHANNELS[channel] for channel in range(channels)},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": cases,
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [],
    }


def _check(out: Path, cases: int, seed: int, channels: int, size: tuple[int, int, int]) -> None:
    if cases < 1:
        raise ConfigError(field="cases", value=cases, problem="must be 1 or more")
    if seed < 0:
        raise ConfigError(field="seed", value=seed, problem="must be 0 or more")
    if not 1 <= channels <= len(_CHANNELS):
        raise ConfigError(field="channels", value=channels, problem=f"must be 1 to {len(_CHANNELS)}")
    if len(size) != 3 or min(size) < 16:
        raise ConfigError(field="size", value=size, problem="must be three numbers of 16 or more")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(field="out", value=str(out), problem="is there already", fix="remove it or choose another folder")
