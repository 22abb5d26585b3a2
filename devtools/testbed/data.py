"""Makes small datasets in every layout, and a step context to register them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.steps import register

SHAPE = (16, 18, 6)
LABELS = {"background": 0, "front": 1, "back": 2}


def write_nifti(path: Path, array: np.ndarray, *, affine: np.ndarray | None = None) -> Path:
    """Write a NIfTI file, with 1 mm voxels and no rotation unless an affine is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def image_array(seed: int, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Return noise, which is the same for the same seed."""
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def label_array(values: Sequence[int] = (0, 1, 2), shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Return a label image with every value in a slab."""
    label = np.zeros(shape, dtype=np.uint8)
    for value in values:
        label[:, value % shape[1]] = value
    return label


def decathlon(root: Path, cases: Sequence[str], *, channels: int = 1, test: Sequence[str] = (), first_seed: int = 0) -> Path:
    """Write a dataset in Medical Segmentation Decathlon layout, with one 4D file for each case if it has several channels."""
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    for number, case in enumerate([*cases, *test]):
        folder = "imagesTr" if case in cases else "imagesTs"
        write_nifti(root / folder / f"{case}.nii.gz", image_array(first_seed + number, shape))
        if case in cases:
            write_nifti(root / "labelsTr" / f"{case}.nii.gz", label_array())
    describe_decathlon(root, cases, channels=channels, test=test)
    return root


def describe_decathlon(root: Path, cases: Sequence[str], *, channels: int = 1, test: Sequence[str] = ()) -> None:
    """Write the ``dataset.json`` of the Decathlon layout."""
    description = {
        "name": "Small",
        "licence": "CC0",
        "modality": {str(number): f"C{number}" for number in range(channels)},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": len(cases),
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases],
        "test": [f"./imagesTs/{case}.nii.gz" for case in test],
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(description))


def raw(root: Path, cases: Sequence[str], *, channels: int = 1, labels: Mapping[str, Any] | None = None, **description: Any) -> Path:
    """Write a dataset in nnU-Net's raw layout."""
    for number, case in enumerate(cases):
        for channel in range(channels):
            write_nifti(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz", image_array(10 * number + channel))
        write_nifti(root / "labelsTr" / f"{case}.nii.gz", label_array())
    data = {
        "channel_names": {str(channel): f"C{channel}" for channel in range(channels)},
        "labels": dict(labels or LABELS),
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        **description,
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(data))
    return root


def context(workspace: Workspace, name: str = "register-test", *, cpus: int = 2) -> StepContext:
    """Return a step's context with a job folder of its own."""
    job = Path(workspace.jobs) / name
    job.mkdir(parents=True, exist_ok=True)
    return StepContext(workspace=workspace, job=JobDir(job), cpus=cpus)


def register_dataset(workspace: Workspace, source: Path, *, dataset_id: int = 4, name: str = "Small", **params: Any) -> dict[str, Any]:
    """Run the register step in this process."""
    return register.run(RegisterParams(dataset_id=dataset_id, name=name, source=str(source), **params), context(workspace))


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder by relative path, without the manifest's dates."""
    content = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "manifest.json":
                manifest = json.loads(data)
                for line in manifest["history"]:
                    line.pop("at")
                data = json.dumps(manifest, sort_keys=True).encode()
            content[str(path.relative_to(folder))] = data
    return content
