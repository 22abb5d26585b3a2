"""Collects what this host offers to jobs, as plain data, for ``airflow nnunet doctor``, reports and support."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import sys
import sysconfig
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_jobs.devices import host
from nnunet_jobs.devices.nvml import read_inventory, torch_is_cpu_only

_PACKAGES = ("nnunetv2", "torch", "torchvision", "nibabel", "SimpleITK", "numpy", "blosc2", "nvidia-ml-py")


def probe() -> dict[str, Any]:
    """Return GPUs, cores, memory and shared memory (MiB), file limits, compiler and versions. Imports no heavy package."""
    inventory = read_inventory()
    shm_total, shm_free = host.shared_memory_mib()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return {
        "gpus": [asdict(gpu) for gpu in inventory.gpus],
        "gpus_reason": inventory.reason,
        "torch_cpu_only": torch_is_cpu_only(),
        "cores": host.cores(),
        "cores_of_host": os.cpu_count(),
        "memory_mib": host.memory_mib(),
        "shm_mib": shm_total,
        "shm_free_mib": shm_free,
        "nofile": {"soft": soft, "hard": hard},
        "compiler": {"gcc": shutil.which("gcc"), "g++": shutil.which("g++"), "python_h": str(headers) if headers.exists() else None},
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "kernel": platform.release(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
