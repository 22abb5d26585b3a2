"""Puts the project's data into the wheel: pools, DAG files, examples, configuration template. ``airflow nnunet init`` writes them out.

An editable install finds them in the project itself, so it gets no copies, which would only grow stale.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_DATA = ("include", "dags", "airflow.cfg.template")


class ProjectFiles(BuildHookInterface[Any]):
    """Adds the data below the Airflow package, where :mod:`airflow_nnunet.settings.project_files` looks for it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling. ``version`` is ``editable`` or ``standard``."""
        if version == "standard":
            build_data["force_include"].update({name: f"airflow_nnunet/project_files/{name}" for name in _DATA})
