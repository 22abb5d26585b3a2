"""Predicts in one process with the model in memory, by stock nnU-Net or by ours, for :mod:`benchmarks.serving`.

It reads its task as JSON from the command line and prints the times as JSON. Its environment is that of nnU-Net.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def stock(order: dict[str, Any]) -> dict[str, Any]:
    """Predict as a careful user would: with nnUNetPredictor, initialised once, one request after another without processes."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(order["model"], use_folds=(0,), checkpoint_name="checkpoint_final.pth")
    took = []
    for image, target in [order["requests"][0], *order["requests"]]:  # the first one is a warm-up
        begun = time.perf_counter()
        predictor.predict_from_files_sequential([[image]], [target.removesuffix(".nii.gz")], save_probabilities=False)
        took.append(time.perf_counter() - begun)
    return {"seconds": took[1:]}


def ours(order: dict[str, Any]) -> dict[str, Any]:
    """Predict all cases at once with Predictor.predict."""
    from nnunet_jobs.context import StepContext
    from nnunet_jobs.contract.job.folder import JobDir
    from nnunet_jobs.contract.storage.workspace import Workspace
    from nnunet_jobs.prediction.cases import Case
    from nnunet_jobs.prediction.model import resolve_model
    from nnunet_jobs.prediction.predictor import Predictor

    workspace = Workspace.from_json(order["workspace"])
    cases = [Case(case=Path(target).name.removesuffix(".nii.gz"), images=(Path(image),)) for image, target in order["requests"]]
    output = Path(order["requests"][0][1]).parent
    job = JobDir(output.parent / f"{output.name}.job")
    job.path.mkdir()
    predictor = Predictor(resolve_model(workspace, order["dataset"], None), StepContext(workspace=workspace, job=job, cpus=order["cpus"]))
    predictor.predict(cases[:1], output)
    begun = time.perf_counter()
    records = predictor.predict(cases, output)
    took = time.perf_counter() - begun
    failed = [record["reason"] for record in records if record["status"] != "predicted"]
    if failed:
        raise RuntimeError(failed[0])
    return {"seconds": [took]}


def main(text: str) -> None:
    """Do the task and print its times."""
    order = json.loads(text)
    result = {"stock": stock, "ours": ours}[order["kind"]](order)
    peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print("\n" + json.dumps({**result, "peak_mib": int(peak) >> 10}))


if __name__ == "__main__":
    main(sys.argv[1])
