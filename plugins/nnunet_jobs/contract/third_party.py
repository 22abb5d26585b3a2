"""Loads what other distributions add by entry points: backends for Airflow, and layouts of sources for jobs."""

from __future__ import annotations

import functools
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from nnunet_jobs.contract.failure import ConfigError


@functools.cache
def found(group: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a group by name. They are read once a process, so later packages are found at the next start."""
    points: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, source(point))):
        points.setdefault(point.name, []).append(point)
    return points


def load(group: str, name: str, *, field: str, ours: Collection[str]) -> tuple[Any, str] | None:
    """Load the entry point of this name in a group, and say where it is from; return None if there is none.

    Args:
        group: Group of the entry points.
        name: Name of the entry point.
        field: Field or option whose value the name is, such as ``backend``; errors name it.
        ours: Names that this distribution uses itself, and no other distribution may use.

    Raises:
        ConfigError: Two distributions use the name, or the entry point cannot be loaded.
    """
    points = found(group).get(name, [])
    sources = " and ".join(source(point) for point in points)
    if points and name in ours:
        problem = f"is a {field} of airflow-provider-nnunet, and {sources} has one of that name too"
        raise ConfigError(field=field, value=name, problem=problem, fix="uninstall that package, or rename its entry point")
    if len(points) > 1:
        problem = f"{sources} have a {field} of this name"
        raise ConfigError(field=field, value=name, problem=problem, fix="uninstall all of them but one")
    if not points:
        return None
    where = f"{points[0].value} of {sources}"
    try:
        return points[0].load(), where
    except Exception as error:  # the import of a foreign module may raise any error
        problem = f"{where} cannot be loaded ({type(error).__name__}: {error})"
        raise ConfigError(field=field, value=name, problem=problem, fix="repair or uninstall that package") from error


def source(point: EntryPoint) -> str:
    """Return name and version of the distribution of an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
