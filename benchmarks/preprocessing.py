"""Compares preprocessing with the stock command: seconds, ratio, target, and whether all arrays are equal.

    python benchmarks/preprocessing.py [--source FOLDER] [--cases 40] [--many 200] [--new 5]

The stock command runs with its integrity check, as in the stated baseline. Ours makes the same checks when a dataset is
registered, and here compares each file's sha256 with the manifest. All times include the start of Python and all
imports.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "plugins")]

from devtools.testbed.preprocessing import DATASET, differences, register, result_of, start, stock  # noqa: E402
from nnunet_jobs.contract.storage.workspace import Workspace  # noqa: E402

CONFIGURATIONS = ["2d", "3d_fullres"]
STOCK = ("-c", *CONFIGURATIONS, "--verify_dataset_integrity")


def timed(what: str, work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    print(f"  {what}: {seconds:.1f} s (load {os.getloadavg()[0]:.1f})", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=PROJECT.parent / "shared" / "data" / "Task04_Hippocampus")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--many", type=int, default=200)
    parser.add_argument("--new", type=int, default=5)
    options = parser.parse_args()
    names = sorted(path.name.removesuffix(".nii.gz") for path in (options.source / "imagesTr").glob("[!.]*.nii.gz"))
    work = Path(tempfile.mkdtemp(prefix="preprocessing_"))
    rows: list[tuple[str, float, float, str]] = []
    try:
        some = Workspace.below(work / "some")
        register(some, options.source, names[: options.cases])
        default = timed("stock, default processes", lambda: stock(some, work / "default", *STOCK))
        two = timed("stock, -np 2", lambda: stock(some, work / "two", *STOCK, "-np", "2", "-npfp", "2"))
        ours = timed("ours", lambda: result_of(start(some, configurations=CONFIGURATIONS)))
        wrong = differences(Path(some.preprocessed) / DATASET, work / "default" / DATASET)
        done = timed("ours, nothing new", lambda: result_of(start(some, configurations=CONFIGURATIONS)))
        rows += [
            (f"{options.cases} cases: stock, default processes", default, 1, ""),
            (f"{options.cases} cases: stock, -np 2", two, default / two, ""),
            (f"{options.cases} cases: ours, against the default", ours, default / ours, ">= 6"),
            (f"{options.cases} cases: ours, against -np 2", ours, two / ours, ">= 2"),
            (f"{options.cases} cases: ours, nothing new", done, default / done, ""),
        ]
        many = Workspace.below(work / "many")
        register(many, options.source, names[: options.many - options.new])
        timed("ours, first of the many", lambda: result_of(start(many, configurations=CONFIGURATIONS)))
        register(many, options.source, names[: options.many])
        full = timed("stock on all", lambda: stock(many, work / "full", *STOCK))
        fresh = timed(f"ours, {options.new} new", lambda: result_of(start(many, name="new", configurations=CONFIGURATIONS)))
        rows += [
            (f"{options.many} cases: stock, default processes", full, 1, ""),
            (f"{options.many} cases, {options.new} new: ours", fresh, full / fresh, ">= 30"),
        ]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{'':<44}{'seconds':>9}{'ratio':>8}{'target':>8}")
    for what, seconds, ratio, target in rows:
        print(f"{what:<44}{seconds:>9.1f}{ratio:>8.1f}{target:>8}")
    print(f"\nfiles that differ from the stock command's: {wrong or 'none'}")


if __name__ == "__main__":
    main()
