"""Compares CeleryExecutor and LocalExecutor: Airflow's own time for a task, with empty jobs and PostgreSQL for both.

    python -m benchmarks.executors [--rounds 3]

A chain of dependent tasks gives the seconds from one step to the next; a mapped task gives the tasks per second. Needs
Debian's postgresql and redis-server.
"""

from __future__ import annotations

import argparse
import datetime as dt
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]

from devtools.stack import Stack  # noqa: E402
from devtools.stack_components import CeleryWorker  # noqa: E402
from devtools.testbed.servers import Postgres, Redis, running_postgres, running_redis  # noqa: E402

STEPS = 10
MAPPED = 20
SLOTS = 8  # number of tasks at once, for both
DAGS = f"""
from airflow.sdk import DAG, chain
from airflow_nnunet.operators import RegisterDatasetOperator

with DAG("steps", schedule=None) as steps:
    chain(*[RegisterDatasetOperator(task_id=f"step{{number}}", dataset_id=1, name="T", source="/data") for number in range({STEPS})])

with DAG("mapped", schedule=None) as mapped:
    RegisterDatasetOperator.partial(task_id="one", name="T", source="/data").expand(dataset_id=list(range(1, {MAPPED} + 1)))
"""


def measure(folder: Path, postgres: Postgres, *, executor: str, broker: str | None, rounds: int) -> tuple[float, float]:
    """Return the median seconds per dependent task and median tasks per second of one executor, without the first round."""
    dags = folder / executor / "dags"
    dags.mkdir(parents=True)
    (dags / "bench.py").write_text(DAGS)
    settings = {"nnunet.workspace": str(folder / executor / "work"), "nnunet.backend": "fake", "core.parallelism": str(SLOTS)}
    workers = []
    if broker is not None:
        settings["celery.broker_url"] = broker
        workers = [CeleryWorker.on("default", name=name, broker=broker, concurrency=SLOTS // 2) for name in ("one", "two")]
    stack = Stack(
        folder / executor / "home",
        dags=dags,
        settings=settings,
        environment={"PYTHONPATH": str(PROJECT / "plugins")},
        executor=executor,
        database=postgres.create_database(executor.lower()),
        extra=workers,
    )
    with stack:
        took: dict[str, list[float]] = {"steps": [], "mapped": []}
        for _ in range(rounds + 1):
            for dag_id, seconds in took.items():
                stack.client.wait_for_dag(dag_id)
                run_id = stack.client.trigger(dag_id)
                if stack.client.wait_for_run(dag_id, run_id, timeout_s=300) != "success":
                    raise RuntimeError(f"{dag_id}: {stack.client.states(dag_id, run_id)}")
                seconds.append(length(stack, dag_id, run_id))
    return statistics.median(took["steps"][1:]) / STEPS, MAPPED / statistics.median(took["mapped"][1:])


def length(stack: Stack, dag_id: str, run_id: str) -> float:
    """Return the seconds from a run's first start of a task to its last end, as recorded by Airflow."""
    tasks = stack.client.task_instances(dag_id, run_id)
    first = min(dt.datetime.fromisoformat(task["start_date"]) for task in tasks)
    last = max(dt.datetime.fromisoformat(task["end_date"]) for task in tasks)
    return (last - first).total_seconds()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for server in (Postgres, Redis):
        if reason := server.missing():
            print(f"not measured: {reason}")
            return
    folder = Path(tempfile.mkdtemp(prefix="executors-"))
    try:
        with running_postgres() as postgres, running_redis() as redis:
            local = measure(folder, postgres, executor="LocalExecutor", broker=None, rounds=options.rounds)
            celery = measure(folder, postgres, executor="CeleryExecutor", broker=redis.url, rounds=options.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\nmedian of {options.rounds}, {SLOTS} tasks at once{'':<12}{'Local':>9}{'Celery':>9}{'ratio':>8}")
    print(f"{f'seconds from a task to the next ({STEPS})':<42}{local[0]:>9.2f}{celery[0]:>9.2f}{celery[0] / local[0]:>8.2f}")
    print(f"{f'tasks per second ({MAPPED} mapped tasks)':<42}{local[1]:>9.2f}{celery[1]:>9.2f}{local[1] / celery[1]:>8.2f}")


if __name__ == "__main__":
    main()
