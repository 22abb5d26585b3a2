"""Compares the validator with nnU-Net's own check, with the same cases and the same number of processes.

    python benchmarks/validation.py [--source FOLDER] [--cases 200] [--processes 2] [--rounds 2]

Times include the start of Python and all imports. nnU-Net's check needs its own layout, so both read the registered
folder. Ours also finds faults that nnU-Net accepts (FAULTS.md, row 59), hashes every file, and draws each case for the
report.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]

from devtools.testbed.preprocessing import DATASET, register  # noqa: E402
from nnunet_jobs.contract.storage.workspace import Workspace  # noqa: E402

STOCK = (
    "import sys; from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity\n"
    "if __name__ == '__main__': verify_dataset_integrity(sys.argv[1], int(sys.argv[2]))\n"
)


def timed(what: str, command: list[str], environment: dict[str, str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{what} failed: {done.stdout}{done.stderr}")
    print(f"  {what}: {seconds:.1f} s (load {os.getloadavg()[0]:.1f})", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=PROJECT.parent / "shared" / "data" / "Task04_Hippocampus")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    names = sorted(path.name.removesuffix(".nii.gz") for path in (options.source / "imagesTr").glob("[!.]*.nii.gz"))
    work = Path(tempfile.mkdtemp(prefix="validation_"))
    stock: list[float] = []
    ours: list[float] = []
    try:
        workspace = Workspace.below(work / "work")
        register(workspace, options.source, names[: options.cases])
        folder, program, count = Path(workspace.raw) / DATASET, work / "stock.py", str(options.processes)
        program.write_text(STOCK)
        environment = {**os.environ, **workspace.nnunet_environment(), "PYTHONPATH": str(PROJECT / "plugins")}
        for _ in range(options.rounds):
            stock.append(timed("nnU-Net's check", [sys.executable, str(program), str(folder), count], environment))
            command = [sys.executable, "-m", "nnunet_jobs", "validate", str(folder), "--processes", count]
            ours.append(timed("ours", command, environment))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    base, new = statistics.median(stock), statistics.median(ours)
    print(f"\n{f'{options.cases} cases, {options.processes} processes':<36}{'seconds':>9}{'ratio':>8}{'target':>8}")
    print(f"{'nnU-Net verify_dataset_integrity':<36}{base:>9.1f}{1:>8.1f}")
    print(f"{'validate':<36}{new:>9.1f}{base / new:>8.1f}{'>= 2':>8}")


if __name__ == "__main__":
    main()
