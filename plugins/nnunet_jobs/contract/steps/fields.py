"""Looks up annotated types of parameter dataclasses, checks JSON values against them, and describes them for users."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable
from typing import Any, ClassVar


def field_types(params_class: type[Any]) -> dict[str, Any]:
    """Return the annotated types of a dataclass's fields. They are cached, since resolving them is slow and DAGs need them often."""
    if params_class not in _FIELD_TYPES:
        _FIELD_TYPES[params_class] = typing.get_type_hints(params_class)
    return _FIELD_TYPES[params_class]


_FIELD_TYPES: dict[type[Any], dict[str, Any]] = {}


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the annotated type."""
    key = repr(hint)  # equal types in unions and lists may have different hashes
    if key not in _CHECKS:
        _CHECKS[key] = _check_of(hint)
    return _CHECKS[key](value)


_CHECKS: dict[str, Callable[[Any], bool]] = {}


def _check_of(hint: Any) -> Callable[[Any], bool]:
    """Return the check of an annotated type. It supports only types that the dataclasses use."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or origin is ClassVar:
        return lambda value: True
    if isinstance(hint, types.UnionType):
        options = [_check_of(part) for part in arguments]
        return lambda value: any(option(value) for option in options)
    if origin is list:
        item = _check_of(arguments[0])
        return lambda value: isinstance(value, list) and all(map(item, value))
    if origin is dict:
        key, entry = (_check_of(part) for part in arguments)
        return lambda value: isinstance(value, dict) and all(map(key, value)) and all(map(entry, value.values()))
    if hint is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    if hint is float:  # JSON has no infinity, and comparisons with NaN would pass
        return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return lambda value: isinstance(value, hint)


def type_in_words(hint: Any) -> str:
    """Describe an annotated type for an error message."""
    names = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "empty"}
    if isinstance(hint, types.UnionType):
        return " or ".join(type_in_words(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return f"a list of {type_in_words(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return "a mapping"
    return names.get(hint, "any value")
