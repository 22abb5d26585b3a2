"""Finds backends of other distributions by entry points, whose names are the values of option ``backend``::

[project.entry-points."airflow_nnunet.backends"]
slurm = "nnunet_slurm:SlurmBackend"
"""

from __future__ import annotations

import inspect
from collections.abc import Collection

from airflow_nnunet.backends.base import Backend
from nnunet_jobs.contract import third_party
from nnunet_jobs.contract.failure import ConfigError

GROUP = "airflow_nnunet.backends"


def load(name: str, ours: Collection[str]) -> type[Backend] | None:
    """Return the class that another distribution has under a name, or None if there is no such entry point.

    Args:
        name: Name of the backend.
        ours: Names of this package's backends, which no other distribution may use.

    Raises:
        ConfigError: Two distributions use the name, the entry point cannot be loaded, or it is not a backend.
    """
    found = third_party.load(GROUP, name, field="backend", ours=ours)
    if found is None:
        return None
    loaded, where = found
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)) or inspect.isabstract(loaded):
        raise _error(name, f"{where} is not a complete class derived from airflow_nnunet.Backend", "correct the entry point or the class")
    if loaded.name != name:
        problem = f"{where} has the name {loaded.name!r}"
        raise _error(name, problem, "give the entry point and the attribute name of its class the same name")
    return loaded


def names() -> list[str]:
    """Return the names of the entry points, sorted."""
    return sorted(third_party.found(GROUP))


def origin(name: str) -> str:
    """Return the origin of a backend: its entry point, with name and version of the distribution."""
    point = third_party.found(GROUP)[name][0]
    return f"{point.value} of {third_party.source(point)}"


def _error(name: str, problem: str, fix: str) -> ConfigError:
    return ConfigError(field="backend", value=name, problem=problem, fix=fix)
