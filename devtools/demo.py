"""``make demo`` runs a dataset through all five operators in a private Airflow, and prints the results at the end.

    python -m devtools.demo [--data FOLDER] [--folder .demo] [--keep-up [--port 8080] [--no-run] | --down]

Everything is below one folder: data, workspace, Airflow's home, and ``summary.json``. A second run does not repeat
finished work.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from airflow_nnunet.prediction_api.rest_client import RestError
from devtools.demo_site import login, make_stack, require_free, write_env
from devtools.progress_view import ProgressView
from devtools.stack import PROJECT, Stack, StackError
from nnunet_jobs.contract.steps.results import RegisterResult
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.workspace import MODEL_CARD

DAG_ID = "nnunet_demo"
PHANTOM_CASES = 20
_RUN_LIMIT_S = 3600.0
_STEPS = ("register", "preprocess", "train", "find_best", "predict")


class DemoError(RuntimeError):
    """The demo cannot continue; the message has the reason and the fix."""


def recipe(data: Path, *, name: str, dataset_id: int) -> dict[str, Any]:
    """Return the dataset file of the demo: three folds of a tiny 2D network, which learn something in 200 iterations."""
    example: dict[str, Any] = yaml.safe_load((PROJECT / "include/datasets/phantom_tiny.yaml").read_text())
    example["description"] = f"Demo on {name}"
    example["dataset"] = {"id": dataset_id, "name": name, "source": str(data), "layout": "decathlon", "holdout_fraction": 0.2}
    return example


def prepare(folder: Path, data: Path | None) -> Path:
    """Prepare data and dataset file, and return the folder of dataset files.

    Raises:
        DemoError: There is no Decathlon dataset at ``data``, or the phantom could not be made.
    """
    if data is None:
        data = folder / "data" / "phantom"
        name, dataset_id = "Phantom", 990
        if not (data / "dataset.json").is_file():
            say(f"no data given: making {PHANTOM_CASES} phantom cases in {data}")
            command = [sys.executable, "-m", "nnunet_jobs", "phantom", str(data), "--cases", str(PHANTOM_CASES), "--seed", "0"]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode:
                raise DemoError(f"the phantom could not be made:\n{done.stderr[-2000:]}")
    else:
        data = data.resolve()
        if not (data / "dataset.json").is_file():
            raise DemoError(f"{data} has no dataset.json; give a folder in Medical Segmentation Decathlon layout")
        name, dataset_id = "".join(part for part in data.name.partition("_")[2] if part.isalnum()) or "Demo", 991
    datasets = folder / "datasets"
    datasets.mkdir(parents=True, exist_ok=True)
    (datasets / "demo.yaml").write_text(yaml.safe_dump(recipe(data, name=name, dataset_id=dataset_id), sort_keys=False))
    return datasets


def pool_slots() -> int:
    """Return how many jobs may compute at once: the number of GPUs, or of cores, as one core for each fold is fastest.

    Raises:
        DemoError: The machine could not be probed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_jobs", "probe"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoError(f"python -m nnunet_jobs probe failed:\n{done.stderr[-2000:]}")
    probe = json.loads(done.stdout)
    return len(probe["gpus"]) or max(1, int(probe["cores"]))


def run(stack: Stack, *, workspace: Path) -> dict[str, Any]:
    """Trigger the DAG, show its progress until it ends, and summarise it.

    Raises:
        DemoError: The run failed; the message has the end of each failed task's log.
    """
    client = stack.client
    client.wait_for_dag(DAG_ID)
    run_id = client.trigger(DAG_ID)
    view = ProgressView(client, DAG_ID, run_id, jobs=workspace / "jobs")
    state = client.wait_for_run(DAG_ID, run_id, timeout_s=_RUN_LIMIT_S, progress=view.show)
    view.show()
    if state != "success":
        raise DemoError(f"run {run_id} failed\n{view.failures()}")
    return summarise(stack, run_id, workspace)


def summarise(stack: Stack, run_id: str, workspace: Path) -> dict[str, Any]:
    """Return the content of ``summary.json``: seconds of each step, hold-out Dice by label, paths of model and predictions."""
    client = stack.client
    spans: dict[str, list[dt.datetime]] = {}
    for item in client.task_instances(DAG_ID, run_id):
        if item["state"] == "success" and item["start_date"]:
            times = (dt.datetime.fromisoformat(item[key]) for key in ("start_date", "end_date"))
            spans.setdefault(item["task_id"], []).extend(times)
    steps = [{"name": name, "seconds": round((max(spans[name]) - min(spans[name])).total_seconds(), 1)} for name in _STEPS if name in spans]
    dataset = RegisterResult.from_json(client.xcom(DAG_ID, run_id, "register")).dataset
    # The card is read from files and not from XComs, because a second run skips the tasks.
    card = read_json(workspace / "nnUNet_results" / dataset / MODEL_CARD)
    return {
        "steps": steps,
        "holdout": card["metrics"]["holdout_per_label"] or {},
        "model": str(workspace / "nnUNet_results" / dataset),
        "predictions": str(workspace / "predictions" / dataset / "holdout"),
    }


def table(summary: Mapping[str, Any], *, total_s: float) -> str:
    """Return the results as a table."""
    lines = ["", f"{'step':<14}{'seconds':>9}"]
    lines += [f"{step['name']:<14}{step['seconds']:>9.1f}" for step in summary["steps"]]
    lines += [f"{'all together':<14}{total_s:>9.1f}", "", f"{'hold-out':<20}{'Dice':>6}"]
    known = {label: dice for label, dice in summary["holdout"].items() if dice is not None}
    lines += [f"{label:<20}{dice:>6.3f}" for label, dice in known.items()]
    lines += [f"{label:<20} undefined: no hold-out case has it" for label in summary["holdout"] if label not in known]
    if known:
        lines.append(f"{'foreground':<20}{sum(known.values()) / len(known):>6.3f}")
    lines += ["", f"model        {summary['model']}", f"predictions  {summary['predictions']}"]
    lines.append("UI           `make up` serves it")
    return "\n".join(lines)


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m devtools.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder in Medical Segmentation Decathlon layout; by default a phantom is made")
    parser.add_argument("--folder", type=Path, default=PROJECT / ".demo", help="folder for everything (default .demo)")
    parser.add_argument("--keep-up", action="store_true", help="leave Airflow and its UI running until --down")
    parser.add_argument("--no-run", action="store_true", help="with --keep-up: only start Airflow")
    parser.add_argument("--port", type=int, default=8080, help="with --keep-up: port of the UI (default 8080)")
    parser.add_argument(
        "--input-root",
        type=Path,
        action="append",
        default=[],
        help="folder that may contain datasets; may be repeated (default /data/incoming)",
    )
    parser.add_argument("--down", action="store_true", help="stop what --keep-up left running")
    chosen = parser.parse_args(arguments)
    folder = chosen.folder.absolute()
    running = Stack(folder / "airflow")
    if chosen.down:
        running.stop()
        say("the demo has stopped")
        return 0
    if running.runs:
        if not chosen.keep_up:
            say(f"the Airflow of `make up` runs below {running.home}; stop it with `make down` first")
            return 1
        say(f"it is up already\n\n{login(folder, running)}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the finally below stops Airflow
    stack: Stack | None = None
    keep = False
    try:
        stack = start(folder, chosen)
        keep = chosen.keep_up
        if chosen.keep_up:
            write_env(folder, stack)
            say(login(folder, stack) + "\n")
        if not chosen.no_run:
            say(result(folder, stack))
    except (DemoError, StackError, RestError) as error:
        say(f"\nthe demo failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nstopped")
        return 130
    finally:
        if stack is not None and not keep:
            stack.stop()
    if keep and not chosen.no_run:
        say(f"\n{login(folder, stack)}")
    return 0


def start(folder: Path, chosen: argparse.Namespace) -> Stack:
    """Prepare the data, start Airflow and create its pools.

    Raises:
        DemoError: The data could not be prepared. Nothing runs then.
        StackError: Airflow could not be started. Nothing runs then.
    """
    began = time.monotonic()
    if chosen.keep_up:
        require_free(chosen.port)
    datasets = prepare(folder, chosen.data)
    slots = pool_slots()
    roots = [folder / "data", *([chosen.data.resolve()] if chosen.data else []), *(chosen.input_root or [Path("/data/incoming")])]
    stack = make_stack(folder, datasets, roots, slots=slots, port=chosen.port if chosen.keep_up else None)
    say(f"starting Airflow below {stack.home} ({slots} jobs compute at once)")
    stack.start()
    try:
        say(stack.airflow("nnunet", "sync-pools").rstrip())
    except BaseException:
        stack.stop()
        raise
    say(f"Airflow is ready after {time.monotonic() - began:.0f} s")
    return stack


def result(folder: Path, stack: Stack) -> str:
    """Run the demo's DAG, write ``summary.json`` and return the results as text.

    Raises:
        DemoError: The run failed.
    """
    began = time.monotonic()
    summary = run(stack, workspace=folder / "work")
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return table(summary, total_s=time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
