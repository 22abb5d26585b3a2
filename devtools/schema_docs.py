"""Makes the pages of dataset and team files from their schemas: ``python -m devtools.schema_docs [teams]``."""

from __future__ import annotations

import inspect
import sys
from typing import Any, cast

from pydantic import BaseModel

from airflow_nnunet.pipelines.dataset_config import TrainingConfig
from airflow_nnunet.settings.teams import TeamConfig

_INTRODUCTION = """\
# Dataset files

This page lists every field of a dataset file, for people who write one. Each `.yaml` or `.yml` file in `include/datasets` becomes a DAG
`nnunet_<file name>`. Hidden files and sub-folders are ignored. Only `dataset.id`, `dataset.name` and `dataset.source` are required.

If a field is wrong or unknown, or a key occurs twice, `dags/nnunet_dataset_files.py` has an import error with the file, the line, the
field and the fix. The DAGs of the other files are not affected.

A new DAG is paused. When you unpause it, no run starts for a time that has passed: the first scheduled run is the next one that is due.
*Trigger* with *Unpause* starts one run at once. If a DAG has run on its schedule before, and was paused while a run became due, one run
makes up for it when you unpause it.

This page is made from the schema by `python -m devtools.schema_docs`.
"""
_TEAMS = """\
# Team files

This page lists every field of a team file, for people who set up teams. Each file `<team>.yaml` in `include/teams` is a team. Start
with a copy of `radiology.yaml.example`. Only `pool.slots` and `nnunet.workspace` are required.

A dataset file with `team: <team>`, or an operator with `team="<team>"`, uses the team's workspace, and may name no path outside of its
folders. It uses the team's pool, queue and priority unless it names others. `airflow nnunet sync-pools` creates the pools of all teams.

If a field is wrong, two teams have the same pool, or a folder of one team is inside a folder of another, `dags/nnunet_dataset_files.py`
has an import error with the file, the line, the field and the fix. Workers, DAG processor and API server must all see this folder.
Option `teams` of section `[nnunet]` names another one; by default it is `include/teams` beside the DAGs folder.

This page is made from the schema by `python -m devtools.schema_docs teams`.
"""


def reference(model: type[BaseModel] = TrainingConfig, introduction: str = _INTRODUCTION) -> str:
    """Return tables of every field of dataset files: type, default, meaning."""
    sections = {
        name: cast("type[BaseModel]", field.annotation) for name, field in model.model_fields.items() if _is_section(field.annotation)
    }
    pages = [introduction, "## Top level\n\n" + _table(model, skip=set(sections))]
    pages += [f"## `{name}`\n\n{inspect.cleandoc(model.__doc__ or '')}\n\n{_table(model)}" for name, model in sections.items()]
    return "\n".join(pages)


def team_reference() -> str:
    """Return the same tables for team files."""
    return reference(TeamConfig, _TEAMS)


def _table(model: type[BaseModel], skip: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    schema: dict[str, Any] = model.model_json_schema()
    for name, field in model.model_fields.items():
        if name not in skip:
            default = "required" if field.is_required() else f"`{_yaml(field.default)}`"
            rows.append(f"| `{name}` | {_type(schema['properties'][name])} | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    names = {"integer": "integer", "number": "number", "string": "string", "boolean": "true or false", "object": "mapping"}
    return names.get(schema.get("type", ""), "anything")


def _yaml(value: Any) -> str:
    if value is None:
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


if __name__ == "__main__":
    print(team_reference() if sys.argv[1:] == ["teams"] else reference(), end="")
