"""Finds trainers and planners by name, in nnU-Net's files and below ``trainer_paths``, without importing any of them.

This way a wrong name is refused when it is entered, and not hours later in every fold.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.sdk.configuration import conf

from airflow_nnunet.provider_info import OPTIONS
from airflow_nnunet.settings.config import path_list
from airflow_nnunet.settings.teams import load_teams
from nnunet_jobs.contract.failure import ConfigError

_FOLDERS = {"trainer": ("training", "nnUNetTrainer"), "planner": ("experiment_planning",)}
"""Folder, below its package, in which nnU-Net looks for each kind of class."""
_ALWAYS_THERE = ("nnUNetTrainer", "ExperimentPlanner")
_NEEDED = ("backend", "python", "trainer_paths")
_CLASS = re.compile(r"^class +(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """Holds the Python classes of one kind.

    Attributes:
        names: Public classes that are defined by a ``class`` statement.
        text: Source of all files, which also has the names of classes that are defined in another way.
    """

    names: tuple[str, ...]
    text: str

    def __contains__(self, name: object) -> bool:
        return name in self.names or re.search(rf"\b{re.escape(str(name))}\b", self.text) is not None


def known_classes(kind: str, *, team: str | None = None, conn_id: str | None = None) -> Classes | None:
    """Return the classes that jobs will find.

    Args:
        kind: ``trainer`` or ``planner``.
        team: Team whose settings are used; the settings of section [nnunet] if None.
        conn_id: Connection with other settings; connections are not read while DAGs are parsed.

    Returns:
        None if this is not known here, because jobs run in containers or pods, with an interpreter that is not on
        this host, or with the settings of a connection.
    """
    if conn_id is not None:
        return None
    # Only these three options are read, because a hundred DAGs ask for them several times each.
    options: dict[str, Any] = {name: conf.get("nnunet", name, fallback=OPTIONS[name]["default"]) for name in _NEEDED}
    try:
        options |= load_teams().get(team).options() if team else {}
    except ConfigError:
        return None  # this is reported when the team's file is checked
    if options["backend"] != "local":
        return None
    package = _package(str(options["python"] or sys.executable))
    if package is None:
        return None
    own = path_list(options["trainer_paths"]) if kind == "trainer" else ()
    return _scan(str(package.joinpath(*_FOLDERS[kind])), own)


def check_class(kind: str, name: str, *, team: str | None = None, conn_id: str | None = None) -> None:
    """Refuse the name of a class that no file has.

    Raises:
        ConfigError: No file has such a class; the message begins with ``kind``.
    """
    if name in _ALWAYS_THERE:
        return
    known = known_classes(kind, team=team, conn_id=conn_id)
    if known is None or name in known:
        return
    near = difflib.get_close_matches(name, known.names, n=1)
    where = "nnU-Net or below trainer_paths" if kind == "trainer" else "nnU-Net"
    fix = f"did you mean {near[0]!r}?" if near else f"correct it{', or add its folder to trainer_paths' if kind == 'trainer' else ''}"
    raise ConfigError(field=kind, value=name, problem=f"no such class in {where}", fix=fix)


@functools.lru_cache(maxsize=8)
def _package(python: str) -> Path | None:
    """Return the folder of an interpreter's package ``nnunetv2``, without importing or running anything."""
    if python == sys.executable:
        spec = importlib.util.find_spec("nnunetv2")
        places = list(spec.submodule_search_locations or ()) if spec else []
    else:
        # The path is not resolved, because the interpreter of a virtual environment is a link to another one.
        places = [str(path) for path in Path(python).parent.parent.glob("lib/python3.*/site-packages/nnunetv2")]
    return Path(places[0]) if places else None


@functools.lru_cache(maxsize=8)
def _scan(folder: str, more: tuple[str, ...]) -> Classes:
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for place in (folder, *more) for path in _modules(place))
    names = sorted({name for name in _CLASS.findall(text) if not name.startswith("_")})
    return Classes(names=tuple(names), text=text)


def _modules(folder: str) -> Iterator[Path]:
    """Yield the Python files that nnU-Net searches: those of a folder and of the packages below it."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if os.path.isfile(os.path.join(place, name, "__init__.py"))]
        yield from (Path(place, name) for name in sorted(files) if name.endswith(".py"))
