"""Checks the arguments of ``.partial()`` and ``.expand()`` when the DAG is parsed, as those of other operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from airflow.sdk.definitions.mappedoperator import MappedOperator, OperatorPartial

from nnunet_jobs.contract.failure import ConfigError


@attrs.define(kw_only=True, repr=False)
class CheckedPartial(OperatorPartial):
    """Airflow's own class, for operators that can check some of their arguments with ``judge``."""

    @classmethod
    def of(cls, partial: OperatorPartial) -> CheckedPartial:
        """Make one from the result of ``BaseOperator.partial``.

        Raises:
            ConfigError: A constant argument is wrong.
        """
        partial._expand_called = True  # the new object must be expanded instead
        checked = cls(operator_class=partial.operator_class, kwargs=partial.kwargs, params=partial.params)
        try:
            checked._judge({})
        except ConfigError:
            checked._expand_called = True  # otherwise Airflow reports a task that was never mapped
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
    """Return the known mapped arguments: those of ``expand_kwargs`` as they are, those of ``expand`` one by one."""
    if isinstance(value, Mapping):
        return [{name: item} for name, items in value.items() if isinstance(items, Sequence) for item in items]
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, Sequence) else []
