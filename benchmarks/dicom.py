"""Converts one DICOM study to NIfTI, cold (in a new process) and warm, compared with dcm2niix, and registers it.

    python -m benchmarks.dicom [--source FOLDER] [--rounds 3]

Our converter reads every header, checks the geometry and hashes every file before it converts. Both write compressed
NIfTI.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]

from devtools.testbed.data import context  # noqa: E402
from devtools.testbed.data import write_nifti as write_label  # noqa: E402
from nnunet_jobs.contract.failure import ConfigError  # noqa: E402
from nnunet_jobs.contract.steps.params import RegisterParams  # noqa: E402
from nnunet_jobs.contract.storage.workspace import Workspace  # noqa: E402
from nnunet_jobs.dicom.convert import write_nifti  # noqa: E402
from nnunet_jobs.dicom.geometry import grid_of  # noqa: E402
from nnunet_jobs.dicom.series import scan  # noqa: E402
from nnunet_jobs.dicom.workers import dicom_workers  # noqa: E402
from nnunet_jobs.sandbox.workers import Workers  # noqa: E402
from nnunet_jobs.steps import register  # noqa: E402

SERIES = PROJECT.parent / "shared" / "data" / "dicom" / "12-T1post-05670"


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def convert(source: Path, target: Path, workers: Workers) -> None:
    (series,) = scan(source, workers=workers, beat=lambda: None).series
    write_nifti(series, grid_of(series), target, beat=lambda: None, workers=workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SERIES, help="folder with one series")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="dicom_"))
    tool = shutil.which("dcm2niix")
    cold, warm, other = [], [], []
    try:
        for number in range(options.rounds):
            if tool:
                out = work / f"other{number}"
                out.mkdir()
                command = [tool, "-z", "y", "-b", "n", "-o", str(out), str(options.source)]
                other.append(seconds(lambda command=command: subprocess.run(command, capture_output=True, check=True)))  # type: ignore[misc]
            with dicom_workers(1) as workers:
                cold.append(seconds(lambda: convert(options.source, work / "cold.nii.gz", workers)))
                warm.append(seconds(lambda: convert(options.source, work / "warm.nii.gz", workers)))
        first, again = registration(options.source, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    base = statistics.median(other) if other else None
    print(f"\n{len(list(options.source.iterdir()))} slices, median of {options.rounds}{'':<10}{'seconds':>9}{'ratio':>8}")
    for what, took in (
        ("dcm2niix -z y", base),
        ("ours, first study of a process", statistics.median(cold)),
        ("ours, reading processes up", statistics.median(warm)),
        ("registration with a label", first),
        ("registration, nothing new", again),
    ):
        if took is not None:
            print(f"{what:<38}{took:>9.2f}" + (f"{base / took:>8.1f}" if base else ""))


def registration(source: Path, work: Path) -> tuple[float, float]:
    """Return the seconds to register the study as a dataset of one labelled case, and again with nothing new."""
    import nibabel
    import numpy as np

    tree = work / "tree"
    shutil.copytree(source, tree / "study")
    workspace = Workspace.below(work / "work", input_roots=(str(work),))
    params = RegisterParams(
        dataset_id=4, name="Study", source=str(tree), layout="dicom", holdout_fraction=0.0,
        channel_names={"0": "MR"}, label_names={"background": 0, "bright": 1},
    )  # fmt: skip
    with dicom_workers(1) as workers:
        convert(tree / "study", work / "image.nii.gz", workers)
    image = nibabel.load(work / "image.nii.gz")
    values = np.asanyarray(image.dataobj)
    label = (values > np.percentile(values, 99)).astype(np.uint8)
    with contextlib.suppress(ConfigError):  # without a label this fails, but the study gets its case id
        register.run(params, context(workspace))
    (persons,) = Path(workspace.private).glob("*.jsonl")
    case = json.loads(persons.read_text().splitlines()[0])["case"]
    write_label(tree / "labels" / f"{case}.nii.gz", label, affine=image.affine)
    first = seconds(lambda: register.run(params, context(workspace, "first")))
    return first, seconds(lambda: register.run(params, context(workspace, "again")))


if __name__ == "__main__":
    main()
