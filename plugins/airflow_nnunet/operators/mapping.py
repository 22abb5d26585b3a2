"""Mapped operators: what ``.partial()`` and ``.expand()`` are given is judged when the DAG is parsed, as an operator's arguments are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from airflow.sdk.definitions.mappedoperator import MappedOperator, OperatorPartial

from nnunet_jobs.contract.failure import ConfigError


@attrs.define(kw_only=True, repr=False)
class CheckedPartial(OperatorPartial):
    """As Airflow's own, for operators that can judge a part of their arguments with ``judge``."""

    @classmethod
    def of(cls, partial: OperatorPartial) -> CheckedPartial:
        """Take over what ``BaseOperator.partial`` has made.

        Raises:
            ConfigError: A constant argument is wrong.
        """
        partial._expand_called = True  # it is this one that must be expanded
        checked = cls(operator_class=partial.operator_class, kwargs=partial.kwargs, params=partial.params)
        try:
            checked._judge({})
        except ConfigError:
            checked._expand_called = True  # the DAG's author learns of the fault, not of a task that was never mapped
            raise
        return checked

    def _expand(self, expand_input: Any, *, strict: bool) -> MappedOperator:
        for arguments in _constants(expand_input.value):
            try:
                self._judge(arguments)
            except ConfigError:
                self._expand_called = True
                raise
        return super()._expand(expand_input, strict=strict)

    def _judge(self, arguments: Mapping[str, Any]) -> None:
        operator: Any = self.operator_class
        given = {**self.kwargs, **arguments}
        operator.judge({name: value for name, value in given.items() if value is not None})


def _constants(value: Any) -> list[Mapping[str, Any]]:
    """Arguments that are mapped over and known already: of ``expand_kwargs`` as they stand, of ``expand`` one by one."""
    if isinstance(value, Mapping):
        return [{name: item} for name, items in value.items() if isinstance(items, Sequence) for item in items]
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, Sequence) else []
