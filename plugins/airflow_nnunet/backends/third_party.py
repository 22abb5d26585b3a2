"""Backends of other distributions. A package makes one known by an entry point, whose name is the value of option ``backend``::

[project.entry-points."airflow_nnunet.backends"]
slurm = "nnunet_slurm:SlurmBackend"
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points

from airflow_nnunet.backends.base import Backend
from nnunet_jobs.contract.failure import ConfigError

GROUP = "airflow_nnunet.backends"


@functools.cache
def found() -> dict[str, list[EntryPoint]]:
    """The entry points by name, read once a process: installing a package takes effect at Airflow's next start, as with providers."""
    points: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, source(point))):
        points.setdefault(point.name, []).append(point)
    return points


def load(name: str, ours: Collection[str]) -> type[Backend] | None:
    """The class that another distribution has under a name, None if there is no entry point of the name.

    Args:
        name: Name of the backend.
        ours: Names of this package's backends, which no other distribution may use.

    Raises:
        ConfigError: Two distributions use the name, the entry point cannot be loaded, or it is not a backend.
    """
    points = found().get(name, [])
    if points and name in ours:
        raise _error(
            name,
            f"is a backend of airflow-provider-nnunet, and {_sources(points)} has one of that name too",
            "uninstall that package, or rename its entry point",
        )
    if len(points) > 1:
        raise _error(name, f"{_sources(points)} have a backend of this name", "uninstall all of them but one")
    if not points:
        return None
    (point,) = points
    where = f"{point.value} of {source(point)}"
    try:
        loaded = point.load()
    except Exception as error:  # whatever the import of a foreign module raises
        problem = f"{where} cannot be loaded ({type(error).__name__}: {error})"
        raise _error(name, problem, "repair or uninstall that package") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)) or inspect.isabstract(loaded):
        raise _error(name, f"{where} is not a complete class derived from airflow_nnunet.Backend", "correct the entry point or the class")
    if loaded.name != name:
        problem = f"{where} has the name {loaded.name!r}"
        raise _error(name, problem, "give the entry point and the attribute name of its class the same name")
    return loaded


def _error(name: str, problem: str, fix: str) -> ConfigError:
    return ConfigError(field="backend", value=name, problem=problem, fix=fix)


def source(point: EntryPoint) -> str:
    """Name and version of the distribution that an entry point belongs to."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _sources(points: list[EntryPoint]) -> str:
    return " and ".join(source(point) for point in points)
