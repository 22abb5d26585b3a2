"""The pages of the YAML files from their schemas: ``python -m devtools.schema_docs [teams] > include/datasets/README.md``."""

from __future__ import annotations

import inspect
import sys
from typing import Any, cast

from pydantic import BaseModel

from airflow_nnunet.pipelines.dataset_config import TrainingConfig
from airflow_nnunet.settings.teams import TeamConfig

_INTRODUCTION = """\
# Dataset files

Each `.yaml` or `.yml` file here becomes a DAG `nnunet_<file name>`; hidden files and sub-folders are left alone. Only `dataset.id`,
`dataset.name` and `dataset.source` are required. A wrong or unknown field, a key that stands twice, and whatever else Airflow would refuse
is shown as an import error of `dags/nnunet_dataset_files.py` with file, line, field and fix; the DAGs of the other files stay.

A new DAG is paused. Unpausing it starts no run for a time that has passed: the first scheduled run is the next one due, and *Trigger*
with *Unpause* starts the run that was asked for. After its first scheduled run, a DAG that was paused over a due time makes up for it
with one run when it is unpaused, as Airflow does after an outage of the scheduler.

This page is made from the schema by `python -m devtools.schema_docs`.
"""
_TEAMS = """\
# Team files

Each `<team>.yaml` here is a team. A dataset file with `team: <team>` and an operator with `team="<team>"` use the team's workspace and
may name no path outside its roots; they take its pool, queue and priority where they say nothing. `airflow nnunet sync-pools` creates
the teams' pools. Required are `pool.slots` and `nnunet.workspace`. A wrong field, a pool that two teams claim, or folders of two teams
that are inside one another are an import error of `dags/nnunet_dataset_files.py` with file, line, field and fix. Workers, DAG processor and
API server read this folder: option `teams` of section `[nnunet]`, `include/teams` beside the DAGs folder when empty. Begin with a copy
of `radiology.yaml.example`. This page is made from the schema by `python -m devtools.schema_docs teams`.
"""


def reference(model: type[BaseModel] = TrainingConfig, introduction: str = _INTRODUCTION) -> str:
    """Markdown tables of every field of dataset files: type, default, meaning."""
    sections = {
        name: cast("type[BaseModel]", field.annotation) for name, field in model.model_fields.items() if _is_section(field.annotation)
    }
    pages = [introduction, "## Top level\n\n" + _table(model, skip=set(sections))]
    pages += [f"## `{name}`\n\n{inspect.cleandoc(model.__doc__ or '')}\n\n{_table(model)}" for name, model in sections.items()]
    return "\n".join(pages)


def team_reference() -> str:
    """The same of team files."""
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
