"""Checks regular expressions in a step's parameters."""

from __future__ import annotations

import re

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.base import StepParams

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def require_case_pattern(params: StepParams, pattern: str) -> None:
    """Check the field ``case_pattern``.

    Raises:
        ConfigError: It is not a regular expression, or has no group ``case``.
    """
    params.require(
        "case" in compile_pattern(params, "case_pattern", pattern).groupindex, "case_pattern", "needs a named group (?P<case>...)"
    )


def compile_pattern(params: StepParams, name: str, pattern: str) -> re.Pattern[str]:
    """Return the field ``name`` as a compiled pattern.

    Raises:
        ConfigError: It is not a regular expression.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(where=f"{params.step}:", field=name, value=pattern, problem=f"not a regular expression: {error}") from error
