"""Measures how late a triggerer's event loop sees the ends of many deferred jobs (fault matrix, row 79: 10 s at most).

    python -m benchmarks.triggers [--jobs 1000] [--seconds 60]

The jobs are real directories. Another process acts as their runners: it writes a heartbeat each second, some lines of
log and progress, and an end at a random moment. The exit code is 1 if a job's end was seen more than 10 s late.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "plugins"))

from airflow_nnunet.jobs.trigger import JobTrigger  # noqa: E402
from nnunet_jobs.contract.job.folder import JobDir  # noqa: E402
from nnunet_jobs.contract.job.liveness import write_counter  # noqa: E402
from nnunet_jobs.contract.job.spec import JobSpec, make_job_id  # noqa: E402
from nnunet_jobs.contract.job.state import Phase  # noqa: E402
from nnunet_jobs.contract.storage.workspace import Workspace  # noqa: E402

LIMIT_S = 10.0
_PARAMS = {"dataset": 1, "configuration": "2d", "fold": 0}


def make(root: Path, number: int) -> Path:
    """Make a job that is running according to its files."""
    spec = JobSpec(job_id=make_job_id("train", str(number)), step="train", params=_PARAMS, workspace=Workspace.below(root / "work"))
    job = JobDir.create(spec)
    job.begin_attempt(expected=0)
    job.set_phase(1, Phase.RUNNING, "pretending")
    # It is on another host, so that the missing process does not count as its end.
    state = json.loads((job.path / "state.json").read_text())
    (job.path / "state.json").write_text(json.dumps({**state, "host": "another"}))
    return job.path


def play(paths: list[Path], seconds: float) -> None:
    """Act as the runners of all jobs. Each ends within ``seconds``, and its result has the time of its end."""
    draw = random.Random(79)
    ends = sorted((draw.uniform(1, seconds), number) for number in range(len(paths)))
    began, beats = time.monotonic(), 0
    while ends:
        now = time.monotonic() - began
        while ends and ends[0][0] <= now:
            job = JobDir(paths[ends.pop(0)[1]])
            job.finish(1, {"attempt": 1, "result": {"at": time.monotonic()}})
        if now >= beats:
            beats += 1
            for _, number in ends:
                job = JobDir(paths[number])
                write_counter(job.heartbeat, beats)
                if (number + beats) % 10 == 0:
                    with open(job.metrics, "a") as metrics, open(job.log, "a") as log:
                        metrics.write(json.dumps({"t": 0.0, "phase": "train", "done": beats, "total": 1000}) + "\n")
                        log.write(f"epoch {beats}\n" * 5)
        time.sleep(0.02)


async def watch(path: Path) -> float:
    """Return the seconds from a job's end to its trigger's event."""
    trigger = JobTrigger(job=str(path), backend="local", log_offset=0)
    async for _ in trigger.run():
        break
    result = JobDir(path).result()
    if result is None:
        raise RuntimeError(f"{path} has no result: {JobDir(path).state()}")
    return time.monotonic() - float(result["result"]["at"])


async def watch_all(paths: list[Path], seconds: float) -> list[float]:
    """Run all triggers on one event loop, as in a triggerer."""
    watching = [asyncio.ensure_future(watch(path)) for path in paths]
    await asyncio.sleep(0)
    runners = multiprocessing.get_context("spawn").Process(target=play, args=(paths, seconds))
    runners.start()
    late = await asyncio.gather(*watching)
    runners.join()
    return list(late)


def main() -> int:
    """Print the table, and return 1 if a job's end was seen too late."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="Airflow's own limit of a triggerer (default 1000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="within which all of them end (default 60)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="triggers-") as folder:
        paths = [make(Path(folder), number) for number in range(chosen.jobs)]
        before = time.process_time()
        # A triggerer writes logs of triggers to files. Here they are formatted and dropped.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            late = asyncio.run(watch_all(paths, chosen.seconds))
        cores = (time.process_time() - before) / chosen.seconds
    quantiles = statistics.quantiles(late, n=100)
    print(f"{chosen.jobs} deferred jobs, one look each 2 s; a triggerer's process used {cores:.2f} cores")
    print(f"seen late by: median {statistics.median(late):.2f} s, 99 of 100 within {quantiles[98]:.2f} s, latest {max(late):.2f} s")
    if max(late) > LIMIT_S:
        print(f"WRONG: more than {LIMIT_S:.0f} s")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
