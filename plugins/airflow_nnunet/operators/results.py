"""Annotates the results of tasks, because Airflow's own annotation of ``output`` does not allow ``[...]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from airflow.sdk.definitions.xcom_arg import PlainXComArg


class ResultMixin:
    """Annotates ``output`` of operators whose result is a mapping."""

    @property
    def output(self) -> PlainXComArg:
        """Return the task's result for downstream tasks. ``output["model"]`` needs ``multiple_outputs=True``."""
        return cast("PlainXComArg", super().output)  # type: ignore[misc]
