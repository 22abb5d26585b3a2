"""The text of a DAG's page in the UI."""

from __future__ import annotations

from airflow_nnunet.pipelines.dataset_config import TrainingConfig


def dataset_as_table(config: TrainingConfig) -> str:
    """Return the dataset file as a table for the DAG's page."""
    lines = [f"### {config.dataset_name}", "", "| setting | value |", "|---|---|"]
    for name, value in config.model_dump(exclude_none=True).items():
        fields = value if isinstance(value, dict) else {None: value}
        for field, item in fields.items():
            lines.append(f"| {name}{f'.{field}' if field else ''} | `{str(item).replace('|', chr(92) + '|')}` |")
    return "\n".join(lines)
