"""Lets another interpreter import this package without anything else from the folder that holds it.

A folder of installed packages must never be on PYTHONPATH: it precedes the standard library, and some packages install a module
with a standard name (batchgenerators has an ``argparse.py`` of 2010), which then breaks every command.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nnunet_jobs.contract.storage.files import content_hash, repoint

_NAMES = ("site-packages", "dist-packages")
_OURS = "airflow_provider_nnunet-"


def home() -> Path:
    """Return the folder that holds this package, as it was found; a link to it is not followed."""
    return Path(os.path.abspath(__file__)).parents[3]


def is_shared(folder: Path) -> bool:
    """Whether a folder holds other installed packages too, as ``site-packages`` or a ``pip install --target`` folder does."""
    installed = (entry.name for entry in folder.iterdir() if entry.suffix in (".dist-info", ".egg-info"))
    return folder.name in _NAMES or any(not name.startswith(_OURS) for name in installed)


def on_path(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return a copy of an environment with a folder at the front of PYTHONPATH, once."""
    others = environment.get("PYTHONPATH", "").split(os.pathsep)
    return {**environment, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in (str(folder), *others) if path))}


def for_this_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of an environment in which this interpreter, started again, finds this package as it does now."""
    return dict(environment) if is_shared(home()) else on_path(environment, home())


def linked(folder: Path) -> Path:
    """Return a folder below ``folder`` in which another interpreter finds only ``nnunet_jobs``. It is made when missing.

    Args:
        folder: Folder on this host that exists as long as the other interpreter runs.
    """
    made = folder.resolve() / f".packages-{content_hash(str(home()), length=8)}"
    repoint(made / "nnunet_jobs", (home() / "nnunet_jobs").resolve())
    return made


@contextmanager
def for_command(python: str, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield an environment in which an interpreter finds this package for the duration of one command.

    Args:
        python: The interpreter, as an absolute path.
        environment: Other variables of the environment.
    """
    if not is_shared(home()) or python == sys.executable:
        yield for_this_interpreter(environment)
        return
    with tempfile.TemporaryDirectory(prefix="nnunet-packages-") as folder:
        yield on_path(environment, linked(Path(folder)))
