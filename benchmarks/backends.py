"""Compares one training as a local process and in a container: time of the start, of an epoch, and in all.

    python -m benchmarks.backends --image nnunet-jobs:0.1.0-cpu [--docker-url unix:///var/run/docker.sock] [--epochs 4]
        [--rounds 2]

Needs a Docker engine with an image of `make images` that has this version's code. The dataset is generated, so the
numbers can only be compared with each other. `first epoch began` counts from submit: start of a process or container,
lease, imports, network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]

from airflow_nnunet.backends import Backend, Watch, get_backend  # noqa: E402
from nnunet_jobs.contract.job.folder import JobDir  # noqa: E402
from nnunet_jobs.contract.job.spec import JobSpec, Resources, make_job_id  # noqa: E402
from nnunet_jobs.contract.job.state import Phase  # noqa: E402
from nnunet_jobs.contract.storage.workspace import Workspace  # noqa: E402
from nnunet_jobs.dataset.phantom import write_phantom  # noqa: E402

USER = 12345
TINY = {
    "inherits_from": "2d",
    "batch_size": 16,
    "architecture": {
        "arch_kwargs": {"features_per_stage": [16, 32, 64, 128], "n_conv_per_stage": [1] * 4, "n_conv_per_stage_decoder": [1] * 3}
    },
}
RECIPE = {"iterations": 50, "val_iterations": 10, "optimizer": "adamw", "initial_lr": 3e-3, "mirroring": False}
ROWS = {
    "submit returns": "submit",
    "the runner is on record": "begun",
    "first epoch began": "first",
    "an epoch, with checkpoint": "epoch",
    "the whole job, validation included": "total",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default=os.environ.get("BENCH_IMAGE", ""), help="default: $BENCH_IMAGE")
    parser.add_argument("--docker-url", default=os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2, help="each round runs both, one after the other")
    options = parser.parse_args()
    if not options.image:
        print("left out: name an image with --image or BENCH_IMAGE; `make images` builds one")
        return 0
    work = Path(tempfile.mkdtemp(prefix="backends_"))
    work.chmod(0o755)
    try:
        write_phantom(work / "phantom", cases=options.cases, seed=0)
        backends = {"local": get_backend("local"), "docker": docker(options.image, options.docker_url, owner(work))}
        workspaces = {name: prepare(backends["local"], work, name) for name in backends}
        give(Path(workspaces["docker"].jobs).parent, owner(work))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in backends}
        for number in range(options.rounds):
            for name, backend in backends.items():
                runs[name].append(train(backend, workspaces[name], number, options.epochs))
                shown = ", ".join(f"{what} {runs[name][-1][key]:.2f} s" for what, key in ROWS.items())
                print(f"  {name}: {shown} (load {os.getloadavg()[0]:.1f})", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    show(runs)
    return 0


def docker(image: str, url: str, user: tuple[int, int]) -> Backend:
    """Return the Docker backend for an engine that has the image."""
    return get_backend("docker", image=image, docker_url=url, pull="never", user=f"{user[0]}:{user[1]}")


def owner(work: Path) -> tuple[int, int]:
    """Return the owner of the data in containers: this user, or another one for root, because no job runs as root."""
    found = work.stat()
    return (found.st_uid, found.st_gid) if found.st_uid else (USER, USER)


def give(root: Path, user: tuple[int, int]) -> None:
    """Make a workspace that root prepared the jobs' own."""
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, *user, follow_symlinks=False)


def prepare(local: Backend, work: Path, name: str) -> Workspace:
    """Return a workspace of its own with the phantom registered and preprocessed, so that no training finds the other's work."""
    workspace = Workspace.below(work / name, input_roots=(str(work),))
    register = {"dataset_id": 900, "name": "Phantom", "source": str(work / "phantom"), "holdout_fraction": 0.0}
    preprocess = {"datasets": [900], "configurations": ["2d_tiny"], "custom_configurations": {"2d_tiny": TINY}, "folds": 5}
    for step, params in (("register", register), ("preprocess", preprocess)):
        end(local, local.submit(spec(workspace, step, params, name)))
    Path(workspace.output_roots[0]).mkdir()
    return workspace


def spec(workspace: Workspace, step: str, params: Mapping[str, Any], *identity: object, gpus: int = 0) -> JobSpec:
    """Return the specification of one job."""
    resources = Resources(gpus=gpus, device="cpu", shm_mib=1024)
    return JobSpec(job_id=make_job_id(step, *identity), step=step, params=params, workspace=workspace, resources=resources)


def train(backend: Backend, workspace: Workspace, number: int, epochs: int) -> dict[str, float]:
    """Return the seconds of one training; each round takes another fold, so that none is found done."""
    params = {"dataset": 900, "configuration": "2d_tiny", "fold": number, "epochs": epochs, **RECIPE}
    begin, wall = time.perf_counter(), time.time()
    job = backend.submit(spec(workspace, "train", params, backend.name, number, gpus=1))
    submit = time.perf_counter() - begin
    begun = end(backend, job) - begin
    total = time.perf_counter() - begin
    records = [record for record in job.read_metrics()[0] if record["phase"] == "train" and "done" in record]
    first = records[0]["t"] - records[0]["epoch_s"] - wall
    epoch = (records[-1]["t"] - records[0]["t"]) / (len(records) - 1)
    return {"submit": submit, "begun": begun, "first": first, "epoch": epoch, "total": total}


def end(backend: Backend, job: JobDir) -> float:
    """Wait until a job has succeeded, and return when its runner was first seen running."""
    watch, seen = Watch(lost_after_s=120), 0.0
    while not (status := backend.status(job, watch)).final:
        if not seen and job.state().phase is Phase.RUNNING:
            seen = time.perf_counter()
        time.sleep(0.02)
    status.unwrap()
    return seen or time.perf_counter()


def show(runs: Mapping[str, list[dict[str, float]]]) -> None:
    """Print the medians of all rounds, and the difference."""
    print(f"\n{'':<38}{'local s':>9}{'docker s':>10}{'more':>9}")
    for what, key in ROWS.items():
        local, contained = (statistics.median(run[key] for run in runs[name]) for name in ("local", "docker"))
        print(f"{what:<38}{local:>9.2f}{contained:>10.2f}{contained - local:>+9.2f}")


if __name__ == "__main__":
    sys.exit(main())
