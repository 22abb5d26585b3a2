"""Reads section [nnunet]: where the workspace is, which backend runs jobs, and how often they are checked."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airflow_nnunet.backends import Backend, get_backend
from airflow_nnunet.provider_info import OPTIONS
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.workspace import ROOTS, Workspace

SECTION = "nnunet"
_PATH_LISTS = ("input_roots", "output_roots", "trainer_paths")


@dataclass(frozen=True, slots=True, kw_only=True)
class NnunetConfig:
    """Holds the settings that an operator needs.

    Attributes:
        workspace: The roots of the team's data and jobs.
        backend: Name of the backend that runs jobs.
        backend_options: Options of that backend.
        python: Interpreter that has nnU-Net and ``nnunet_jobs``.
        poll_interval: Seconds between two checks of a running job.
        lost_after: Seconds without a heartbeat after which a job counts as lost.
        defer_after: Seconds that a task waits for its job in the worker before it defers. It then stays deferred
            for at least as long.
        task_log: ``full`` shows the job's whole log in the task's log, ``progress`` shows its progress only.
    """

    workspace: Workspace
    backend: str = "local"
    backend_options: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    poll_interval: float = 2.0
    lost_after: float = 120.0
    defer_after: float = 10.0
    task_log: str = "full"

    def __post_init__(self) -> None:
        for name in ("poll_interval", "lost_after"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(where=f"[{SECTION}]", field=name, value=getattr(self, name), problem="must be more than 0 seconds")
        if not (math.isfinite(self.defer_after) and self.defer_after >= 0):
            raise ConfigError(where=f"[{SECTION}]", field="defer_after", value=self.defer_after, problem="must be 0 seconds or more")
        if self.task_log not in ("full", "progress"):
            raise ConfigError(where=f"[{SECTION}]", field="task_log", value=self.task_log, problem="must be full or progress")

    def make_backend(self) -> Backend:
        """Return the backend that submits jobs."""
        options = dict(self.backend_options)
        if self.backend == "local":
            options.setdefault("python", self.python)
        return get_backend(self.backend, **options)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> NnunetConfig:
        """Build from options, given as strings as in airflow.cfg or as JSON values as in a connection's extra."""
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise ConfigError(where=f"[{SECTION}]", field=unknown[0], problem="unknown option", fix=f"known: {', '.join(OPTIONS)}")
        values = {name: options.get(name, option["default"]) for name, option in OPTIONS.items()}
        values = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        values = {name: OPTIONS[name]["default"] if value is None or value == "" else value for name, value in values.items()}
        root = str(values["workspace"]).replace("{AIRFLOW_HOME}", str(airflow_home()))
        if not os.path.isabs(root):
            raise ConfigError(where=f"[{SECTION}]", field="workspace", value=root, problem="must be an absolute path")
        roots = {name: values[name] for name in ROOTS}
        lists = {name: path_list(values[name]) for name in _PATH_LISTS}
        return cls(
            workspace=replace(
                Workspace.below(root, **roots, **lists),
                cpu_slots=number("cpu_slots", values["cpu_slots"], int),
                sharing=str(values["sharing"]),
            ),
            backend=str(values["backend"]),
            backend_options=_json_object("backend_options", values["backend_options"]),
            python=str(values["python"] or sys.executable),
            poll_interval=number("poll_interval", values["poll_interval"], float),
            lost_after=number("lost_after", values["lost_after"], float),
            defer_after=number("defer_after", values["defer_after"], float),
            task_log=str(values["task_log"]),
        )


def airflow_home() -> Path:
    """Return the folder $AIRFLOW_HOME, found as Airflow itself finds it."""
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser().absolute()


def path_list(value: Any, *, separators: str = f",{os.pathsep}") -> tuple[str, ...]:
    """Return folders given as a list, or as a string separated by ':' or ','."""
    parts = re.split(f"[{re.escape(separators)}]", value) if isinstance(value, str) else list(value)
    return tuple(text for part in parts if (text := str(part).strip()))


def section_options() -> dict[str, str]:
    """Return the options of section [nnunet] as strings, with defaults for those that are not set."""
    from airflow.sdk.configuration import conf

    return {name: conf.get(SECTION, name, fallback=option["default"]) for name, option in OPTIONS.items()}


def _json_object(name: str, value: Any) -> dict[str, Any]:
    try:
        data = json.loads(value) if isinstance(value, str) and value else value or {}
    except ValueError as error:
        raise ConfigError(where=f"[{SECTION}]", field=name, value=value, problem="must be a JSON object") from error
    if not isinstance(data, dict):
        raise ConfigError(where=f"[{SECTION}]", field=name, value=value, problem="must be a JSON object")
    return data


def number(name: str, value: Any, kind: type[Any]) -> Any:
    """Convert an option's value to a number.

    Raises:
        ConfigError: The value is not a number.
    """
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        what = "an integer" if kind is int else "a number"
        raise ConfigError(where=f"[{SECTION}]", field=name, value=value, problem=f"must be {what}") from error
