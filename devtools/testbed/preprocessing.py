"""Makes registered datasets by hand and runs the preprocessing step, for its tests and benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.steps.params import PreprocessParams
from nnunet_jobs.contract.storage.files import content_hash, sha256_file, write_json
from nnunet_jobs.contract.storage.workspace import Workspace

DATASET = "Dataset004_Test"
PROJECT = Path(__file__).resolve().parent.parent.parent
TINY = {
    "inherits_from": "2d",
    "batch_size": 4,
    "architecture": {
        "arch_kwargs": {"features_per_stage": [8, 16, 32, 64], "n_conv_per_stage": [1] * 4, "n_conv_per_stage_decoder": [1] * 3}
    },
}  # fmt: skip


def register(
    workspace: Workspace,
    source: Path,
    cases: Iterable[str],
    *,
    dataset: str = DATASET,
    groups: Mapping[str, str] | None = None,
    holdout: Iterable[str] = (),
    **dataset_json: Any,
) -> Path:
    """Put single-channel cases of a Decathlon folder into nnUNet_raw with a manifest, and replace existing ones."""
    raw = workspace.raw_dataset(dataset)
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        shutil.rmtree(raw / folder, ignore_errors=True)
        (raw / folder).mkdir(parents=True)
    held = set(holdout)
    for case in cases:
        part = "Ts" if case in held else "Tr"
        shutil.copy(source / "imagesTr" / f"{case}.nii.gz", raw / f"images{part}" / f"{case}_0000.nii.gz")
        shutil.copy(source / "labelsTr" / f"{case}.nii.gz", raw / f"labels{part}" / f"{case}.nii.gz")
    write_manifest(
        raw,
        {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "anterior": 1, "posterior": 2},
            "file_ending": ".nii.gz",
            **dataset_json,
        },
        groups=groups or {},
    )
    return raw


def write_manifest(raw: Path, dataset_json: dict[str, Any], *, groups: Mapping[str, str]) -> None:
    """Write ``dataset.json`` and ``manifest.json`` for the files of a raw folder."""
    ending = dataset_json["file_ending"]
    entries: dict[str, Any] = {}
    for part, split in (("Tr", "train"), ("Ts", "holdout")):
        for label in sorted((raw / f"labels{part}").glob(f"*{ending}")):
            case = label.name.removesuffix(ending)
            images = sorted((raw / f"images{part}").glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}"))
            shape, spacing = _geometry(images[0])
            entries[case] = {
                "images": [sha256_file(image) for image in images],
                "label": sha256_file(label),
                "group": groups.get(case, case),
                "split": split,
                "shape": shape,
                "spacing": spacing,
            }
    training = {case: entry for case, entry in entries.items() if entry["split"] == "train"}
    description = {key: dataset_json.get(key) for key in ("channel_names", "labels", "regions_class_order", "file_ending")}
    write_json(raw / "dataset.json", {**dataset_json, "numTraining": len(training)})
    write_json(
        raw / "manifest.json",
        {
            "schema": 1,
            "dataset": raw.name,
            "dataset_id": int(raw.name[7:].split("_")[0]),
            "hash": content_hash([entries, description]),
            "training_hash": content_hash([training, description]),
            **description,
            "holdout": {"fraction": 0.0, "cases": []},
            "history": [],
            "cases": entries,
        },
    )


def _geometry(image: Path) -> tuple[list[int], list[float]]:
    import SimpleITK

    if image.suffix == ".png":
        from skimage.io import imread

        return [1, *imread(image).shape[:2]], [999.0, 1.0, 1.0]
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(image))
    reader.ReadImageInformation()
    return list(reader.GetSize()), list(reader.GetSpacing())


def context(workspace: Workspace, name: str = "preprocess", **values: Any) -> StepContext:
    """Return a step's context without a runner."""
    job = JobDir(Path(workspace.jobs) / name)
    job.path.mkdir(parents=True, exist_ok=True)
    return StepContext(workspace=workspace, job=job, **{"cpus": 2, **values})


def preprocess(workspace: Workspace, *, name: str = "preprocess", cpus: int = 2, **params: Any) -> dict[str, Any]:
    """Run the step in this process."""
    from nnunet_jobs.steps.preprocess import run

    return run(PreprocessParams(datasets=[DATASET], **params), context(workspace, name, cpus=cpus))


def start(workspace: Workspace, *, name: str = "preprocess", dataset: str = DATASET, **params: Any) -> subprocess.Popen[bytes]:
    """Run the step in another process, which prints its result as the last line."""
    request = json.dumps({"workspace": workspace.to_json(), "name": name, "params": {"datasets": [dataset], **params}})
    path = os.pathsep.join([str(PROJECT / "plugins"), str(PROJECT)])
    return subprocess.Popen(
        [sys.executable, "-c", "from devtools.testbed.preprocessing import main; main()", request],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def result_of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for :func:`start` and read its result, or raise an error with its stderr."""
    out, err = process.communicate(timeout=300)
    if process.returncode:
        raise AssertionError(f"exit {process.returncode}: {err.decode()[-4000:]}")
    return dict(json.loads(out.decode().splitlines()[-1]))


def main() -> None:
    """Run the step for :func:`start`, and print its result as the last line."""
    from nnunet_jobs.steps.preprocess import run

    request = json.loads(sys.argv[-1])
    workspace = Workspace.from_json(request["workspace"])
    result = run(PreprocessParams.from_json(request["params"]), context(workspace, request["name"]))
    imported = [name for name in ("nnunetv2", "torch") if name in sys.modules]
    print("\n" + json.dumps({**result, "imported": imported}))


def stock(workspace: Workspace, out: Path, *arguments: str, dataset_id: int = 4) -> None:
    """Run nnU-Net's own command on the same raw data, with another nnUNet_preprocessed."""
    command = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
    environment = {**os.environ, "nnUNet_raw": workspace.raw, "nnUNet_preprocessed": str(out), "nnUNet_results": workspace.results}
    subprocess.run(
        [str(command), "-d", str(dataset_id), "--no_pbar", *arguments], env=environment, check=True, capture_output=True, timeout=900
    )


def differences(ours: Path, theirs: Path) -> list[str]:
    """Return the differences of two preprocessed dataset folders: JSON files, ground truth, arrays and properties."""
    import pickle

    import blosc2
    import numpy as np

    found = []
    names = {str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file()}
    mine = {str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file()} - {"version.json", "splits_final.json"}
    found += [f"only in one: {name}" for name in sorted(names ^ mine)]
    for name in sorted(names & mine):
        left, right = ours / name, theirs / name
        if name.endswith(".b2nd"):
            arrays = [blosc2.open(urlpath=str(path), mode="r")[...] for path in (left, right)]
            equal = arrays[0].dtype == arrays[1].dtype and np.array_equal(*arrays)
        elif name.endswith(".pkl"):
            equal = _same(*(pickle.loads(path.read_bytes()) for path in (left, right)))
        else:
            equal = left.read_bytes() == right.read_bytes()
        if not equal:
            found.append(f"differs: {name}")
    return found


def _same(left: Any, right: Any) -> bool:
    import numpy as np

    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(_same(*pair) for pair in zip(left, right, strict=True))
    return np.array_equal(left, right) if isinstance(left, np.ndarray) else bool(left == right)
