"""Defines what parameters and results of all steps share: conversion from and to JSON, and checks that name field and value."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Self

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.fields import field_types, fits, type_in_words


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParams:
    """Base of the parameters: converts from and to JSON, and checks types and unknown fields."""

    step: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = field_types(type(self))
        for item in fields(self):
            value = getattr(self, item.name)
            if not fits(value, hints[item.name]):
                raise ConfigError(where=f"{self.step}:", field=item.name, value=value, problem=f"must be {type_in_words(hints[item.name])}")
        self._check()

    def _check(self) -> None:
        """Raise ConfigError for a value that is out of range. Each step overrides this."""

    def require(self, holds: bool, name: str, fix: str) -> None:
        """Raise a ConfigError that names the field, its value and the fix, unless ``holds``."""
        if not holds:
            raise ConfigError(where=f"{self.step}:", field=name, value=getattr(self, name), problem=fix)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, the inverse of :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build from JSON.

        Raises:
            ConfigError: A field is unknown or missing, has the wrong type, or is out of range.
        """
        known = [item.name for item in fields(cls)]
        for name in data:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ConfigError(
                    f"{cls.step}: unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}")
                )
        try:
            return cls(**data)
        except TypeError as error:
            raise ConfigError(f"{cls.step}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Base of the results and of the objects inside them.

    Types are checked when a result is read, not when a step builds it: a finished training must not fail because of the type of a number.

    Attributes:
        of: The step or object that it describes, for error messages.
    """

    of: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; the inverse of :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read a result that this or another version wrote. Unknown keys are ignored.

        Args:
            data: JSON object, from ``result.json`` or an XCom.

        Raises:
            ConfigError: ``data`` is not an object, a key without a default is missing, or a value has the wrong type. A retry would
                find the same result, so it would not help.
        """
        where = f"result of {cls.of}:"
        if not isinstance(data, Mapping):
            raise ConfigError(where=where, field="result", value=data, problem="must be a mapping")
        hints = field_types(cls)
        values: dict[str, Any] = {}
        for item in fields(cls):
            if item.name in data:
                values[item.name] = value = _read(data[item.name], hints[item.name])
                if not fits(value, hints[item.name]):
                    problem = f"must be {type_in_words(hints[item.name])}"
                    raise ConfigError(where=where, field=item.name, value=value, problem=problem)
            elif item.default is MISSING and item.default_factory is MISSING:
                fix = f"it has {', '.join(map(str, data)) or 'no key at all'}; clear the task, or correct the program that wrote the result"
                raise ConfigError(where=where, field=item.name, problem="is missing", fix=fix)
        return cls(**values)


def _read(value: Any, hint: Any) -> Any:
    """Return a JSON value in which the objects that the annotated type names are read."""
    if isinstance(hint, types.UnionType):
        for option in typing.get_args(hint):
            value = _read(value, option)
        return value
    if typing.get_origin(hint) is list and isinstance(value, list):
        return [_read(item, typing.get_args(hint)[0]) for item in value]
    if isinstance(hint, type) and issubclass(hint, StepResult) and isinstance(value, Mapping):
        return hint.from_json(value)
    return value
