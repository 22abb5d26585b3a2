"""Errors of templates that cannot be rendered. They are faults of the DAG, which the next try would only repeat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jinja2
from airflow.sdk.exceptions import XComNotFound

from airflow_nnunet.jobs.exceptions import InvalidConfig
from airflow_nnunet.jobs.retry import TEMPLATE_FAULTS

_OF_A_SCHEDULED_RUN = (
    "ds", "ds_nodash", "ts", "ts_nodash", "ts_nodash_with_tz", "logical_date", "data_interval_start", "data_interval_end",
)  # fmt: skip


class RenderingMixin:
    """Makes an error in an operator's template a ``config`` error, which names field and fix and is never retried."""

    def _do_render_template_fields(
        self, parent: Any, template_fields: Iterable[str], context: Any, jinja_env: Any, seen_oids: set[int]
    ) -> None:
        # For mapped tasks, Airflow calls this method and not the public one.
        for name in template_fields:
            template = getattr(parent, name, None)
            try:
                super()._do_render_template_fields(parent, (name,), context, jinja_env, seen_oids)  # type: ignore[misc]
            except TEMPLATE_FAULTS as error:
                raise InvalidConfig(
                    f"config: {name}={_shown(template)}: the template cannot be rendered: {error}; {_fix(error)}"
                ) from error


def _shown(template: Any) -> str:
    """Return a template as its author wrote it, or the name of an XCom."""
    return repr(template) if isinstance(template, str | list | tuple | dict) else str(template)


def _fix(error: Exception) -> str:
    missing = str(error).partition("'")[2].partition("'")[0] if isinstance(error, jinja2.UndefinedError) else ""
    if missing in _OF_A_SCHEDULED_RUN:
        return (
            f"a run that was triggered by hand or by an asset has no logical date and no {missing}: use {{{{ dag_run.run_after | ds }}}} "
            "for the day of the run, or {{ run_id }}"
        )
    if isinstance(error, XComNotFound) or missing == "None" or "NoneType" in str(error):
        return "the task whose result it names has not run in this DAG run; run it first, or test the whole DAG with airflow dags test"
    return "correct it in the DAG"
