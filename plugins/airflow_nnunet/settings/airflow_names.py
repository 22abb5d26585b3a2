"""Names and numbers that Airflow stores: what fits its tables, checked before a DAG is built.

A value that does not fit is an error of the DAG processor or of the database, which ends the parsing of every DAG in the same file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

MOST_TAG = 100
"""Characters of a tag, as the SDK and the table ``dag_tag`` allow."""
_MOST_NAME = 256
"""Characters of a pool's and of a queue's name, as the table ``task_instance`` allows."""
_MOST_OWNER = 500
"""Characters of an owner; the table ``dag`` keeps the owners of all tasks in 2,000."""
_INT32 = 2**31


def text_problem(value: str, *, most: int, comma: bool = True) -> str | None:
    """Why a name does not fit Airflow, None where it does.

    Args:
        value: The name.
        most: How many characters fit.
        comma: Whether a comma is part of a name, and does not separate two.
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
    """A tag of at most so many characters as Airflow takes."""
    return text if len(text) <= MOST_TAG else f"{text[: MOST_TAG - 3]}..."
