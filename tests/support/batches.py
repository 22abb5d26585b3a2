"""Folders of small cases for a model of random weights, predicted here or by a process that may be killed."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devtools.testbed.prediction import job_dir
from devtools.testbed.serving import PROJECT
from devtools.testbed.stages import DATASET
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.steps.predict import run

ABORT_CHECK, ABORT_ONCE, ABORT_ITK, ABORT_JOB = b"PLEASE-ABORT", b"ABORT-ONCE", b"ABORT-ITK", b"ABORT-JOB"
"""Words in an image that the processes with hooks obey: the check's decompressor each time or the first time, SimpleITK anywhere,
SimpleITK in the job only."""

HOOKS = ("reader_hooks", "itk_hooks")
SUPPORT = Path(__file__).resolve().parent

_JOB = """
import json, sys
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.steps.predict import run
from devtools.testbed.prediction import job_dir
request = json.loads(sys.argv[1])
workspace = Workspace.from_json(request["workspace"])
context = StepContext(workspace=workspace, job=job_dir(workspace, "predict-process0"), cpus=1)
print(json.dumps(run(PredictParams.from_json(request["params"]), context)))
"""


def params(workspace: Workspace, cases: Path | list[Any], output: str, **fields: Any) -> dict[str, Any]:
    """Of a prediction without mirroring, which these tests have no use for."""
    where = str(Path(workspace.output_roots[0]) / output)
    return {
        "dataset": DATASET,
        "cases": cases if isinstance(cases, list) else str(cases),
        "output": where,
        "mirroring": False,
        "step_size": 1.0,
        **fields,
    }


def predict(workspace: Workspace, cases: Path | list[Any], output: str, **fields: Any) -> dict[str, Any]:
    """The step in this process."""
    context = StepContext(workspace=workspace, job=job_dir(workspace), cpus=2)
    return run(PredictParams.from_json(params(workspace, cases, output, **fields)), context)


def start_job(workspace: Workspace, cases: Path, output: str, *, hooks: str | None = None, **fields: Any) -> subprocess.Popen[bytes]:
    """The step in a process of its own, which prints the result; ``hooks`` make readers obey what images say."""
    request = json.dumps({"workspace": workspace.to_json(), "params": params(workspace, cases, output, **fields)})
    paths = [PROJECT / "plugins", PROJECT / "tests", PROJECT, *([SUPPORT / hooks] if hooks else [])]
    return subprocess.Popen(
        [sys.executable, "-c", _JOB, request],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def finish_job(process: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any]]:
    """How the process ended, and what it returned."""
    said, _ = process.communicate(timeout=300)
    return process.returncode, json.loads(said) if process.returncode == 0 else {}


def poison(path: Path, word: bytes) -> None:
    """Let the voxels of an image hold a word."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[400 : 400 + len(word)] = word
    path.write_bytes(gzip.compress(bytes(data), 1))


def reasons(result: Mapping[str, Any]) -> dict[str, str]:
    """Reason by failed case."""
    return {item["case"]: item["reason"] for item in result["failed"]}


def make_small_cases(folder: Path, count: int, *, distinct: int = 8) -> list[str]:
    """Cases of one window without resampling, hard links of a few distinct files; returns their ids."""
    import nibabel as nib
    import numpy as np

    folder.mkdir()
    originals = []
    for number in range(distinct):
        voxels = np.random.default_rng(number).integers(0, 900, (16, 24, 16)).astype(np.int16)
        originals.append(folder / f".original{number}.nii.gz")
        nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), originals[-1])
    names = [f"c{number:04d}" for number in range(count)]
    for number, name in enumerate(names):
        os.link(originals[number % distinct], folder / f"{name}_0000.nii.gz")
    return names
