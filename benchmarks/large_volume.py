"""Measures memory and time of one large volume, 512 x 512 x 400 voxels and 3 classes, with the stock command and ours.

    python -m benchmarks.large_volume [--shape 512 512 400]

The network is as small as possible and has random weights, windows do not overlap and nothing is mirrored, because the
work around the network is measured. Its grid is coarser than the image's, as usual for CT, so that logits are
resampled. Labels must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]

from benchmarks._load import below_me, sampled_memory  # noqa: E402
from devtools.testbed.prediction import PLANS, TRAINER, job_dir  # noqa: E402
from devtools.testbed.stages import DATASET, LOW, save_stage  # noqa: E402
from nnunet_jobs.contract.storage.files import read_json, repoint, sha256_file, write_json  # noqa: E402
from nnunet_jobs.contract.storage.workspace import Workspace  # noqa: E402
from nnunet_jobs.prediction.model import selection_hash  # noqa: E402

IMAGE_MM, NETWORK_MM, PATCH = (0.78, 0.78, 1.0), [1.25, 1.0, 1.0], [128, 128, 128]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 400])
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="volume_"))
    try:
        workspace = Workspace.below(work / "work", input_roots=(str(work),))
        model(workspace)
        images = work / "images"
        images.mkdir()
        volume(images / "case_0000.nii.gz", options.shape)
        bare = ["-i", str(images), "-d", DATASET, "-c", LOW, "-tr", TRAINER, "-p", PLANS, "-f", "0", "-device", "cpu"]
        bare += ["-step_size", "1", "--disable_tta"]
        command = [str(Path(sys.executable).with_name("nnUNetv2_predict")), *bare]
        variables = workspace.nnunet_environment(model="m1")
        rows = [
            ("stock", measured([*command, "-o", str(work / "stock")], environment=variables)),
            ("stock, -npp 0 -nps 0", measured([*command, "-o", str(work / "serial"), "-npp", "0", "-nps", "0"], environment=variables)),
        ]
        for name, fast in (("ours", []), ("ours, fast: resampling", ["resampling"])):
            out = Path(workspace.output_roots[0]) / name.replace(", ", "-").replace(": ", "-")
            code = "import sys; sys.path[:0] = sys.argv[1:3]; from benchmarks.large_volume import step; step(*sys.argv[3:])"
            params = {"dataset": DATASET, "cases": str(images), "output": str(out), "mirroring": False, "step_size": 1.0, "fast": fast}
            request = json.dumps([workspace.to_json(), params])
            taken = measured([sys.executable, "-c", code, str(PROJECT), str(PROJECT / "plugins"), request])
            rows.append((f"{name} ({difference(work / 'stock', out)})", taken))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seconds, peak = rows[0][1]
    print(f"\n{' x '.join(map(str, options.shape))} voxels, 3 classes{'':<14}{'seconds':>9}{'ratio':>7}{'peak MiB':>10}{'ratio':>7}")
    for name, taken in rows:
        print(f"{name:<44}{taken[0]:>9.1f}{seconds / taken[0]:>7.1f}{taken[1]:>10.0f}{peak / taken[1]:>7.1f}")


def measured(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Run a command, and return its seconds and the most memory of it and its child processes in MiB."""
    begun = time.perf_counter()
    with sampled_memory(below_me) as memory:
        subprocess.run(command, env={**os.environ, **(environment or {})}, check=True, capture_output=True, timeout=1800)
    return time.perf_counter() - begun, memory[0]


def model(workspace: Workspace) -> None:
    """Make and promote a model of one fold whose plans have these spacings and windows."""
    root = workspace.model_root("m1") / DATASET
    files = save_stage(root, LOW, seed=1)
    plans = root / f"{TRAINER}__{PLANS}__{LOW}" / "plans.json"
    content = read_json(plans)
    content["configurations"][LOW] |= {"spacing": NETWORK_MM, "patch_size": PATCH, "next_stage": None}
    write_json(plans, content)
    files[plans.relative_to(root).as_posix()] = sha256_file(plans)
    member = {"trainer": TRAINER, "plans": PLANS, "configuration": LOW, "folds": [0]}
    selection = {"members": [member], "postprocessing": []}
    card = {"schema": 1, "dataset": DATASET, "model": "m1", "selection": selection, "files": files}
    write_json(root / "model.json", {**card, "hash": selection_hash(selection, files)})
    workspace.raw_dataset(DATASET).mkdir(parents=True)
    repoint(workspace.champion_link(DATASET), root)


def volume(path: Path, shape: list[int]) -> None:
    """Write a volume of smooth shapes and noise, as int16 like CT."""
    import nibabel
    import numpy as np

    axes = [np.linspace(0, 9, size, dtype=np.float32) for size in shape]
    smooth = np.sin(axes[0])[:, None, None] * np.cos(axes[1])[None, :, None] * np.sin(axes[2] * 2)[None, None, :]
    noise = np.random.default_rng(0).integers(-40, 40, size=shape, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image((smooth * 600).astype(np.int16) + noise, np.diag([*IMAGE_MM, 1.0])), path)


def difference(stock: Path, ours: Path) -> str:
    """Return whether the bytes are equal, or the share of voxels that differ."""
    import nibabel
    import numpy as np

    files = [folder / "case.nii.gz" for folder in (stock, ours)]
    if files[0].read_bytes() == files[1].read_bytes():
        return "bytes equal"
    left, right = (np.asarray(nibabel.load(file).dataobj) for file in files)
    return f"{float((left != right).mean()):.1e} of voxels differ"


def step(request: str) -> None:
    """Run our step, in a process of its own."""
    from nnunet_jobs.context import StepContext
    from nnunet_jobs.contract.steps.params import PredictParams
    from nnunet_jobs.steps.predict import run

    workspace, params = json.loads(request)
    here = Workspace.from_json(workspace)
    context = StepContext(workspace=here, job=job_dir(here), cpus=len(os.sched_getaffinity(0)))
    assert run(PredictParams.from_json(params), context)["predicted"] == 1


if __name__ == "__main__":
    main()
