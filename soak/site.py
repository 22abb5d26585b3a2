"""Sets up the soak's private Airflow: phantom datasets, tiny trainings, small disks to fill, and a clock that can jump."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

from devtools.stack import PROJECT, Stack
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.workspace import Workspace

CASES = 6
EPOCHS = 4
_WORK_MIB = 1024
_LEDGER_KIB = 256
_RETRIES = 50  # kills cost retries, and no run may fail because of too many kills
_SETTINGS = {
    "core.parallelism": "6",
    "scheduler.task_instance_heartbeat_timeout": "20",
    "scheduler.task_instance_heartbeat_timeout_detection_interval": "3",
    "workers.min_heartbeat_interval": "2",
    "dag_processor.min_file_process_interval": "300",
}


class Site:
    """Holds everything below one folder.

    Args:
        root: An empty folder.
        datasets: Number of datasets, each with its own DAG.
        slots: Number of jobs that compute at once.
    """

    def __init__(self, root: Path, *, datasets: int, slots: int) -> None:
        self.root = root
        self.slots = slots
        self.work = root / "work"
        self.ledger = root / "ledger"
        self.clock = root / "clock"
        self.dag_ids = [f"nnunet_soak_{number}" for number in range(1, datasets + 1)]
        self.mounted: list[Path] = []
        self.workspace = Workspace.below(self.work, leases=str(self.ledger / "leases"), input_roots=(str(root),), cpu_slots=slots)
        self.stack: Stack

    def prepare(self) -> None:
        """Make data, dataset files, disks and the clock, and define the stack. Nothing runs yet."""
        source = self.root / "phantom"
        command = [sys.executable, "-m", "nnunet_jobs", "phantom", str(source), "--cases", str(CASES), "--seed", "0"]
        subprocess.run(command, check=True, capture_output=True)
        files = self.root / "datasets"
        files.mkdir()
        for number in range(1, len(self.dag_ids) + 1):
            (files / f"soak_{number}.yaml").write_text(yaml.safe_dump(recipe(source, number)))
        for folder, size in ((self.work, f"{_WORK_MIB}m"), (self.ledger, f"{_LEDGER_KIB}k")):
            folder.mkdir()
            if _worked("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
                self.mounted.append(folder)
        if not self.mounted:
            self.work.rmdir()  # an empty folder would be taken for a missing share
        self.clock.write_text("0")
        environment: dict[str, str] = {}
        library = self.root / "wall_clock.so"
        if _worked("gcc", "-shared", "-fPIC", "-o", str(library), str(Path(__file__).with_name("wall_clock.c")), "-ldl"):
            environment = {"LD_PRELOAD": str(library), "WALL_CLOCK_SHIFT": str(self.clock)}
        self.clock_can_jump = bool(environment)
        self.stack = Stack(
            self.root / "airflow",
            settings=_SETTINGS,
            environment={
                "PYTHONPATH": str(PROJECT / "plugins"),
                "AIRFLOW__NNUNET__WORKSPACE": str(self.work),
                "AIRFLOW__NNUNET__LEASES": self.workspace.leases,
                "AIRFLOW__NNUNET__INPUT_ROOTS": str(self.root),
                "AIRFLOW__NNUNET__DATASETS": str(files),
                "AIRFLOW__NNUNET__CPU_SLOTS": str(self.slots),
                "AIRFLOW__NNUNET__POLL_INTERVAL": "1",
                "AIRFLOW__NNUNET__LOST_AFTER": "20",
                "AIRFLOW__NNUNET__BACKEND_OPTIONS": json.dumps({"environment": environment}),
            },
        )

    def close(self) -> None:
        """Unmount the small disks."""
        for folder in self.mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)

    def jobs(self) -> list[JobDir]:
        """Return all jobs so far, or none while the storage is missing."""
        with contextlib.suppress(OSError):
            return [JobDir(entry) for entry in Path(self.workspace.jobs).iterdir() if not entry.name.startswith(".")]
        return []

    def processes(self) -> list[int]:
        """Return all processes of this site: those of Airflow, and those with one of its files on their command line."""
        found = set(self.stack.processes())
        for process in psutil.process_iter():
            if process.pid != os.getpid():
                with contextlib.suppress(psutil.Error):
                    if f"{self.root}/" in " ".join(process.cmdline()):
                        found.add(process.pid)
        return sorted(found)


def recipe(source: Path, number: int) -> dict[str, Any]:
    """Return a dataset file: two folds of a tiny 2D network and a prediction of the hold-out."""
    architecture = {"features_per_stage": [8, 16, 32, 64], "n_conv_per_stage": [1, 1, 1, 1], "n_conv_per_stage_decoder": [1, 1, 1]}
    return {
        "dataset": {"id": 800 + number, "name": f"Soak{number}", "source": str(source), "layout": "decathlon", "holdout_fraction": 0.2},
        "preprocess": {
            "configurations": ["2d_tiny"],
            "folds": 2,
            "custom_configurations": {"2d_tiny": {"inherits_from": "2d", "batch_size": 4, "architecture": {"arch_kwargs": architecture}}},
        },
        "train": {
            "epochs": EPOCHS,
            "iterations": 20,
            "val_iterations": 1,
            "optimizer": "adamw",
            "initial_lr": 3e-3,
            "mirroring": False,
            "seed": 1,
        },
        "select": {"ensembles": False, "promote": "always"},
        "retries": _RETRIES,
    }


def _worked(*command: str) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
