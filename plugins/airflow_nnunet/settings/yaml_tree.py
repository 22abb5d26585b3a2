"""Checks a YAML document before its fields: refuses repeated keys, and values that Airflow cannot store."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

Location = tuple[int | str, ...]

_MOST_DEPTH = 40
_MOST_VALUES = 100_000
_INT64 = 2**63
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MISREAD = re.compile(r"[-+]?(?:0[0-9_]+|[0-9_]+(?::[0-9_.]+)+)")
_KEPT_CONTROLS = "\n\t"


@functools.cache
def loader() -> Any:
    """Return the faster of the two safe loaders."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(text: str) -> tuple[Any, list[tuple[int, str]]]:
    """Return the document, and a list of line numbers with messages.

    There is one for each key that a mapping has twice, which YAML forbids, and for each number that YAML reads in
    another base than people expect.

    Raises:
        yaml.YAMLError: The text is not a single YAML document.
    """
    reader = loader()(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None, []
        return reader.construct_document(node), list(_repeated(node, set()))
    except RecursionError as error:
        raise yaml.YAMLError("is nested too deeply") from error
    finally:
        reader.dispose()


def _repeated(node: Any, seen: set[int]) -> Iterator[tuple[int, str]]:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and not node.style and _MISREAD.fullmatch(node.value):
        message = "YAML reads a number with a leading 0 in base 8, and one with a colon in base 60; remove it, or quote the value"
        yield node.start_mark.line + 1, f"{node.value}: {message}"
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[tuple[str, str], Any] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                other = first.setdefault((key.tag, key.value), key)
                if other is not key:
                    lines = f"here and in line {other.start_mark.line + 1}"
                    yield key.start_mark.line + 1, f"{key.value}: is set {lines}, and only the last would count; remove one"
            yield from _repeated(value, seen)


def unfit_values(data: Any) -> Iterator[tuple[Location, str]]:
    """Yield values that JSON, Airflow's messages between processes or its database cannot hold, with path and problem.

    One such value in one DAG breaks every DAG of the same DAG file.
    """
    counted = 0
    stack: list[tuple[Location, Any]] = [((), data)]
    while stack:
        location, value = stack.pop()
        counted += 1
        if counted > _MOST_VALUES:
            yield (), f"has more than {_MOST_VALUES} values; are there aliases that repeat each other?"
            return
        if len(location) > _MOST_DEPTH:
            yield location[:1], f"is nested more than {_MOST_DEPTH} levels deep, or contains itself"
            return
        if isinstance(value, dict):
            for key, item in value.items():
                if problem := _unfit(key):
                    yield (*location, str(key)), f"a key {problem}"
                stack.append(((*location, key if isinstance(key, int | str) else str(key)), item))
        elif isinstance(value, list):
            stack.extend(((*location, number), item) for number, item in enumerate(value))
        elif problem := _unfit(value):
            yield location, problem


def _unfit(value: Any) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        odd = any(_is_control(character) for character in value)
        return "has a control character or half a character; remove it" if odd else None
    if isinstance(value, int):
        return None if -_INT64 <= value < _INT64 else "is too large; Airflow takes integers of 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else "must be a finite number"
    return f"is a {type(value).__name__}, which JSON does not have; quote it to make it a string"


def _is_control(character: str) -> bool:
    code = ord(character)
    return character not in _KEPT_CONTROLS and (code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000)
