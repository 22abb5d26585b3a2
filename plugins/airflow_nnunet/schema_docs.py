"""``include/datasets/README.md`` from the schema itself: ``python -m airflow_nnunet.schema_docs > include/datasets/README.md``."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel

from airflow_nnunet.dataset_config import TrainingConfig

_INTRODUCTION = """\
# Dataset files

Each `*.yaml` here becomes a DAG `nnunet_<file name>`. Only `dataset.id`, `dataset.name` and `dataset.source` are required. A wrong
or unknown field is shown as an import error of `dags/nnunet_dataset_files.py` with file, line, field and mend; the DAGs of the other
files stay. This page is made from the schema by `python -m airflow_nnunet.schema_docs`.
"""


def reference() -> str:
    """Markdown tables of every field: type, default, meaning."""
    sections = {
        name: cast("type[BaseModel]", field.annotation)
        for name, field in TrainingConfig.model_fields.items()
        if _is_section(field.annotation)
    }
    pages = [_INTRODUCTION, "## Top level\n\n" + _table(TrainingConfig, skip=set(sections))]
    pages += [f"## `{name}`\n\n{(model.__doc__ or '').strip()}\n\n{_table(model)}" for name, model in sections.items()]
    return "\n".join(pages)


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
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "object": "mapping"}
    return names.get(schema.get("type", ""), "anything")


def _yaml(value: Any) -> str:
    if value is None:
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


if __name__ == "__main__":
    print(reference(), end="")
