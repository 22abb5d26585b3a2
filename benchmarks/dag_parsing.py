"""Measures the time to make DAGs of 100 dataset files, without ``import airflow.sdk``. The target is 0.5 s."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FILES = 100
ROUNDS = 5
TARGET_S = 0.5
_CODE = """
import sys, time
import airflow.sdk
from airflow.sdk import DAG, Param, TaskGroup, task  # lazy names that any DAG file uses
began = time.perf_counter()
from pathlib import Path
from airflow_nnunet.pipelines.dag_builder import training_dags
imported = time.perf_counter()
dags = training_dags(Path(sys.argv[1]))
assert len(dags) == int(sys.argv[2])
print(imported - began, time.perf_counter() - imported)
"""


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(1, FILES + 1):
            text = f"dataset: {{id: {number}, name: Set{number}, source: /data/{number}}}\ntrain: {{epochs: 250}}\nschedule: '0 1 * * *'\n"
            (folder / f"set{number}.yaml").write_text(text)
        environment = os.environ | {"AIRFLOW_HOME": str(folder / "home")}
        command = [sys.executable, "-c", _CODE, str(folder), str(FILES)]
        rounds = []
        for _ in range(ROUNDS + 1):  # the first one compiles bytecode and is not counted
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            rounds.append([float(value) for value in done.stdout.split()[-2:]])
    imports, parsing = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
    print(f"{FILES} dataset files to DAGs, median of {ROUNDS}: import {imports:.2f} s + parse {parsing:.2f} s = {imports + parsing:.2f} s")
    print(f"target {TARGET_S} s: {(imports + parsing) / TARGET_S:.2f} of it")


if __name__ == "__main__":
    main()
