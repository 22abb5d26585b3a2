"""Checks names and numbers that Airflow stores against the limits of its tables, before a DAG is built.

A value that does not fit fails in the DAG processor or in the database, and takes every DAG of the same file with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

MOST_TAG = 100
"""Most characters of a tag that the SDK and the table ``dag_tag`` allow."""
_MOST_NAME = 256
"""Most characters of the name of a pool or queue that the table ``task_instance`` allows."""
_MOST_OWNER = 500
"""Most characters of an owner; the table ``dag`` keeps the owners of all tasks in 2,000 characters."""
_INT32 = 2**31


def text_problem(value: str, *, most: int, comma: bool = True) -> str | None:
    """Return why a name does not fit Airflow, or None if it does.

    Args:
        value: The name.
        most: Number of characters that fit.
        comma: Whether a name may contain a comma.
    """
    if not value.strip():
        return "must not be empty; name one, or remove it"
    if value != value.strip():
        return "begins or ends with a space; remove it"
    if len(value) > most:
        return f"has {len(value)} characters; Airflow takes {most} at most"
    if not value.isprintable():
        return "has characters that cannot be printed, such as a line break; remove them"
    if not comma and "," in value:
        return "has a comma, which separates names; name one"
    return None


def _checked(most: int, *, comma: bool = True) -> Callable[[str], str]:
    def check(value: str) -> str:
        if problem := text_problem(value, most=most, comma=comma):
            raise PydanticCustomError("airflow_name", "{problem}", {"problem": problem})
        return value

    return check


Tag = Annotated[str, AfterValidator(_checked(MOST_TAG))]
PoolName = Annotated[str, AfterValidator(_checked(_MOST_NAME))]
QueueName = Annotated[str, AfterValidator(_checked(_MOST_NAME, comma=False))]
Owner = Annotated[str, AfterValidator(_checked(_MOST_OWNER))]
Priority = Annotated[int, Field(ge=-_INT32, lt=_INT32)]
Retries = Annotated[int, Field(ge=0, le=1000)]


def fitting_tag(text: str) -> str:
    """Return a tag, cut to the length that Airflow accepts."""
    return text if len(text) <= MOST_TAG else f"{text[: MOST_TAG - 3]}..."
