"""Runs several dataset DAGs under a private Airflow, while components, tasks, runners and steps are killed at random.

    python -m soak [--minutes 10] [--datasets 8] [--seed N]

Every run must succeed without help, no epoch may be trained twice, and nothing may keep running. Prints a table of the
faults by kind, and the seed. The exit code is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

from airflow_nnunet.prediction_api.rest_client import FINISHED_RUN, RestError, wait_until
from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.devices.leases import Ledger
from soak.faults import Faults
from soak.site import EPOCHS, Site

_BETWEEN_S = (1.0, 4.0)  # between two faults
_LOOK_S = 5.0
_END_S = 2400.0  # for the runs that are active after the last fault
_QUIET_S = 60.0


class Runs:
    """Keeps one run of each DAG active. The next one has another number of epochs, so that it trains again."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.current: dict[str, str] = {}
        self.rounds: Counter[str] = Counter()
        self.succeeded = 0
        self.failed: list[str] = []
        self.tries: Counter[str] = Counter()
        self._next_look = 0.0

    def look(self, *, begin: bool) -> None:
        """Record runs that have ended, and start the next ones. Does nothing while the API server is down."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        for dag_id in self.site.dag_ids:
            try:
                self._look(dag_id, begin=begin)
            except (RestError, httpx.HTTPError):
                return

    def _look(self, dag_id: str, *, begin: bool) -> None:
        client = self.site.stack.client
        run_id = self.current.get(dag_id)
        if run_id is not None:
            state = client.run_state(dag_id, run_id)
            if state not in FINISHED_RUN:
                return
            for item in client.task_instances(dag_id, run_id):
                self.tries[item["task_id"]] += max(0, int(item["try_number"]) - 1)
            if state == "success":
                self.succeeded += 1
            else:
                self.failed.append(f"{dag_id} {run_id}: {client.states(dag_id, run_id)}")
            del self.current[dag_id]
        if begin:
            conf = {"epochs": EPOCHS + self.rounds[dag_id], "force": True}
            self.current[dag_id] = client.trigger(dag_id, conf)
            self.rounds[dag_id] += 1


def trained_twice(jobs: list[JobDir]) -> list[str]:
    """Return trainings that report an epoch more than once, or an earlier one after a later one."""
    found = []
    for job in jobs:
        if job.spec().step == "train":
            epochs = [record["done"] for record in job.read_metrics()[0] if record["phase"] == "train" and "done" in record]
            if epochs != sorted(set(epochs)):
                found.append(f"{job.job_id}: epochs {epochs}")
    return found


def soak(site: Site, *, minutes: float, seed: int) -> tuple[Faults, Runs, list[str]]:
    """Inject faults for ``minutes``, then wait until all runs have ended. Returns the faults, the runs, and the errors."""
    wrong: list[str] = []
    site.stack.start()
    client = site.stack.client
    client.set_pool("gpu", site.slots)
    for dag_id in site.dag_ids:
        client.wait_for_dag(dag_id)
    faults, runs = Faults(site, random.Random(seed)), Runs(site)
    began = time.monotonic()
    runs.look(begin=True)
    wait_until(lambda: bool(site.jobs()), timeout_s=120, what=lambda: "no job yet")
    while time.monotonic() - began < minutes * 60:
        faults.one()
        until = time.monotonic() + faults.draw.uniform(*_BETWEEN_S)
        while time.monotonic() < until:
            runs.look(begin=True)
            faults.tick()
            time.sleep(0.2)
    faults.stop()
    deadline = time.monotonic() + _END_S
    while runs.current and time.monotonic() < deadline:
        faults.tick()
        runs.look(begin=False)
        time.sleep(0.5)
    wrong += [f"a run has not ended {_END_S:.0f} s after the last fault: {dag_id} {run_id}" for dag_id, run_id in runs.current.items()]
    wrong += [f"a run failed: {text}" for text in runs.failed]
    jobs = site.jobs()
    wrong += [f"trained twice: {text}" for text in trained_twice(jobs)]
    unfinished = [job.job_id for job in jobs if not job.state().phase.final]
    wrong += [f"a job has not ended: {job_id}" for job_id in unfinished if not runs.current]
    ledger = Ledger(site.workspace.leases)
    wrong += [f"a lease is still held: {holder.device} by {holder.owner}" for holder in ledger.holders() if not runs.current]
    bugs = [f"{job.job_id}: {failure.message}" for job in jobs for failure in _failures(job) if failure.failure_class is FailureClass.BUG]
    wrong += [f"a job failed as a bug: {text}" for text in bugs]
    return faults, runs, wrong


def _failures(job: JobDir) -> list[Failure]:
    last = job.failure()
    return [*job.earlier_failures(), *([last] if last else [])]


def left_running(site: Site) -> list[str]:
    """Return the processes that still run some time after Airflow was stopped."""
    deadline = time.monotonic() + _QUIET_S
    while (pids := site.processes()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return [f"a process is left: {pid}" for pid in pids]


def table(faults: Faults, runs: Runs, *, seed: int, wrong: list[str]) -> str:
    """Return the results as a table."""
    lines = ["", f"{'fault':<16}{'times':>6}"]
    lines += [f"{name:<16}{count:>6}" for name, count in sorted(faults.done.items())]
    lines += [f"{name:<16}     - ({reason})" for name, reason in faults.missing.items()]
    lines += [
        "",
        f"{'kills':<16}{faults.kills:>6}",
        f"{'runs succeeded':<16}{runs.succeeded:>6}",
        f"{'runs failed':<16}{len(runs.failed):>6}",
    ]
    lines += [f"{'retries spent':<16}{sum(runs.tries.values()):>6}  ({', '.join(f'{n} {c}' for n, c in sorted(runs.tries.items()) if c)})"]
    lines += [f"{'seed':<16}{seed:>6}", ""]
    lines += [f"WRONG: {text}" for text in wrong] or ["every run succeeded, no epoch twice, nothing left running"]
    return "\n".join(lines)


def main() -> int:
    """Run the soak and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults are injected (default 10)")
    parser.add_argument("--datasets", type=int, default=8, help="dataset DAGs at once (default 8)")
    parser.add_argument("--seed", type=int, help="seed of the random faults; drawn and printed by default")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(100_000)
    root = Path(tempfile.mkdtemp(prefix="nnunet-soak-"))
    print(f"seed {seed}, {chosen.datasets} datasets, {chosen.minutes:g} minutes of faults below {root}", flush=True)
    site = Site(root, datasets=chosen.datasets, slots=max(1, len(os.sched_getaffinity(0))))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the finally below stops Airflow
    wrong: list[str] = []
    try:
        site.prepare()
        try:
            faults, runs, wrong = soak(site, minutes=chosen.minutes, seed=seed)
        finally:
            site.stack.stop()
        wrong += left_running(site)
        print(table(faults, runs, seed=seed, wrong=wrong), flush=True)
    finally:
        if chosen.keep:
            print(f"left in {root}: {', '.join(map(str, site.mounted)) or 'nothing'} mounted")
        else:
            site.close()
            shutil.rmtree(root, ignore_errors=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
