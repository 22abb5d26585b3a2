"""Converts rendered templates into the values that a step expects: numbers, lists and mappings, or a clear error."""

from __future__ import annotations

import ast
import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.contract.steps.base import StepParams
from nnunet_jobs.contract.steps.fields import field_types

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_EMPTY = ("", "none", "null")


def is_template(value: Any) -> bool:
    """Return whether a value is only known when the task runs, such as Jinja strings, XComs, and collections of them."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, Mapping):
        return any(is_template(item) for item in value.values())
    if isinstance(value, list | tuple | set):
        return any(is_template(item) for item in value)
    # This finds XComArg and related classes without importing them; pathlib.Path has a method of that name too.
    return callable(getattr(value, "resolve", None)) and not isinstance(value, os.PathLike)


def coerce(value: Any, hint: Any, name: str) -> Any:
    """Convert a rendered value to the annotated type if that is unambiguous. The dataclass checks everything else.

    Args:
        value: A string from Jinja, a native object, an XCom or a JSON value.
        hint: Annotation of the field, as in ``nnunet_jobs.contract.steps.params``.
        name: Name of the field, for the error message.

    Raises:
        ConfigError: A string cannot be read as the type.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(hint, types.UnionType):
        return _coerce_union(value, typing.get_args(hint), name)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return [coerce(item, arguments[0], name) for item in _as_list(value, name)]
    if origin is dict:
        mapping = _parse(value, name, 'a mapping such as {"a": 1}') if isinstance(value, str) else value
        if not isinstance(mapping, Mapping):
            raise ConfigError(field=name, value=value, problem="must be a mapping")
        return {str(key): coerce(item, arguments[1], name) for key, item in mapping.items()}
    if hint in (int, float, bool):
        return _scalar(value, hint, name)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # native rendering makes numbers of names such as "17"
    return value


def _coerce_union(value: Any, options: tuple[Any, ...], name: str) -> Any:
    if type(None) in options and (value is None or (isinstance(value, str) and value.strip().lower() in _EMPTY)):
        return None
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        return coerce(value, rest[0], name)
    mappings = [option for option in rest if typing.get_origin(option) is dict]
    if mappings and (isinstance(value, Mapping) or (isinstance(value, str) and value.strip().startswith("{"))):
        return coerce(value, mappings[0], name)
    if float in rest and str not in rest:
        return _scalar(value, float, name)
    if isinstance(value, str):
        structured = [option for option in rest if typing.get_origin(option) is list]
        if structured and value.strip().startswith("["):
            return coerce(value, structured[0], name)
        if int in rest and value.strip().isascii() and value.strip().isdigit() and not value.strip().startswith("0"):
            return int(value)
        if value.strip() == "0" and int in rest:
            return 0
        return value.strip()
    if isinstance(value, float) and int in rest and value.is_integer():
        return int(value)
    if not isinstance(value, int | float | Mapping) and any(typing.get_origin(option) is list for option in rest):
        return list(_as_list(value, name))
    return value


def _scalar(value: Any, hint: type[Any], name: str) -> Any:
    if isinstance(value, float) and hint is int and value.is_integer():
        return int(value)  # JSON has one kind of number
    if not isinstance(value, str):
        return value
    text = value.strip()
    if hint is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise ConfigError(field=name, value=value, problem="must be true or false")
    try:
        return hint(text)
    except ValueError as error:
        raise ConfigError(field=name, value=value, problem=f"must be {'an integer' if hint is int else 'a number'}") from error


def _as_list(value: Any, name: str) -> Iterable[Any]:
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            parsed = _parse(text, name, "a list such as [1, 2]")
            if not isinstance(parsed, list | tuple):
                raise ConfigError(field=name, value=value, problem="must be a list")
            return parsed
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(value, int | float | Mapping):
        return [value]
    try:
        return list(value)  # tuples, sets and lazily read XComs
    except TypeError as error:
        raise ConfigError(field=name, value=value, problem="must be a list") from error


def _parse(text: str, name: str, what: str) -> Any:
    """Parse JSON, or the Python literal that Jinja writes for a list or a mapping."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    raise ConfigError(field=name, value=text, problem=f"must be {what}")


def build_params(params_class: type[StepParams], values: Mapping[str, Any]) -> StepParams:
    """Return the step's checked parameters from rendered fields.

    Raises:
        ConfigError: A field has the wrong type or is out of range.
    """
    hints = field_types(params_class)
    try:
        found = {name: coerce(value, hints[name], name) for name, value in values.items()}
    except ConfigError as error:
        raise error.told(where=f"{params_class.step}:") from error
    return params_class(**found)


def check_constants(params_class: type[StepParams], values: Mapping[str, Any], *, together: Iterable[str] = ()) -> None:
    """Check the values known when a DAG is parsed. Fields that are templates or not given yet get a valid placeholder.

    Args:
        params_class: The step's parameters.
        values: Fields as the DAG's author wrote them. ``.partial()`` has only some of them.
        together: Fields that are checked together. If one of them is a template or missing, none is checked.

    Raises:
        ConfigError: A constant is wrong.
    """
    hints = field_types(params_class)
    known = {name: value for name, value in values.items() if name in hints and not is_template(value)}
    excused = set() if known.keys() >= set(together) else set(together)
    judged = {
        item.name: known[item.name] if item.name in known and item.name not in excused else _stand_in(item, hints[item.name])
        for item in fields(params_class)
    }
    build_params(params_class, judged)


def check_resources(values: Mapping[str, Any]) -> None:
    """Check the fields of :class:`~nnunet_jobs.contract.job.spec.Resources`, under their names in operators.

    Raises:
        ConfigError: A constant is wrong.
    """
    build_resources({name: value for name, value in values.items() if not is_template(value)})


def build_resources(values: Mapping[str, Any]) -> Resources:
    """Return a job's resources from rendered fields, under their names in operators.

    Raises:
        ConfigError: A field has the wrong type or is out of range.
    """
    hints = field_types(Resources)
    found = {"gpus" if name == "num_gpus" else name: value for name, value in values.items()}
    return Resources(**{name: coerce(value, hints[name], name) for name, value in found.items()})


def check_absolute(name: str, value: Any, *, words: tuple[str, ...] = ()) -> None:
    """Check a path that the DAG's author wrote, or each path of a list of cases.

    Args:
        name: Name of the field.
        value: Value of the field.
        words: Values that are not paths.

    Raises:
        ConfigError: A path is relative. A job has no folder from which it could start.
    """
    if isinstance(value, list | tuple):
        for item in value:
            for path in item.get("images") or () if isinstance(item, Mapping) else (item,):
                check_absolute(name, path, words=words)
    elif isinstance(value, str) and value.lstrip().startswith("[") and not is_template(value):
        check_absolute(name, list(_as_list(value, name)), words=words)
    elif isinstance(value, str | os.PathLike) and not is_template(value):
        path = os.fspath(value)
        if path not in words and not os.path.isabs(path):
            others = f"{', '.join(words)} or " if words else ""
            raise ConfigError(field=name, value=path, problem=f"must be {others}an absolute path, or a template of one")


def _stand_in(item: Field[Any], hint: Any) -> Any:
    if item.default is not MISSING:
        return item.default
    factory: Callable[[], Any] | Any = item.default_factory
    if factory is not MISSING:
        return factory()
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    return ["1"] if typing.get_origin(hint) is list else 1 if hint is int else "1"
