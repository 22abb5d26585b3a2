"""Where another interpreter finds this package, without seeing anything else of the folder that holds it.

A folder of installed packages must never stand on PYTHONPATH: what stands there goes before the standard library, and some packages
bring a module of a standard name (an ``argparse.py`` of 2010 comes with batchgenerators), which then breaks every command.
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
    """The folder that holds this package, as it was found: a link to it is not followed."""
    return Path(os.path.abspath(__file__)).parents[3]


def is_shared(folder: Path) -> bool:
    """True if a folder holds installed packages besides ours, as ``site-packages`` or the target of ``pip install --target`` does."""
    installed = (entry.name for entry in folder.iterdir() if entry.suffix in (".dist-info", ".egg-info"))
    return folder.name in _NAMES or any(not name.startswith(_OURS) for name in installed)


def on_path(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """A copy of an environment with a folder at the front of PYTHONPATH, once."""
    others = environment.get("PYTHONPATH", "").split(os.pathsep)
    return {**environment, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in (str(folder), *others) if path))}


def for_this_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy of an environment in which this interpreter, started again, finds this package, as it does now."""
    return dict(environment) if is_shared(home()) else on_path(environment, home())


def linked(folder: Path) -> Path:
    """A folder below ``folder`` in which another interpreter finds ``nnunet_jobs`` and nothing else. Made when it is missing.

    Args:
        folder: Folder on this host, which is there for as long as the other interpreter runs.
    """
    made = folder.resolve() / f".packages-{content_hash(str(home()), length=8)}"
    repoint(made / "nnunet_jobs", (home() / "nnunet_jobs").resolve())
    return made


@contextmanager
def for_command(python: str, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """An environment in which an interpreter finds this package for the length of one command.

    Args:
        python: The interpreter, as an absolute path.
        environment: What it has besides.
    """
    if not is_shared(home()) or python == sys.executable:
        yield for_this_interpreter(environment)
        return
    with tempfile.TemporaryDirectory(prefix="nnunet-packages-") as folder:
        yield on_path(environment, linked(Path(folder)))
