"""Results of tasks as types: Airflow's own annotation of ``output`` has no ``[...]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from airflow.sdk.definitions.xcom_arg import PlainXComArg


class ResultMixin:
    """For operators whose result is a mapping."""

    @property
    def output(self) -> PlainXComArg:
        """The task's result, for tasks that come after it; ``output["model"]`` is one field of it, with ``multiple_outputs=True``."""
        return cast("PlainXComArg", super().output)  # type: ignore[misc]
