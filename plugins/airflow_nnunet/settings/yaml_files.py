"""YAML files that a person writes, checked whole against a pydantic model: every fault with file, line, field, value and fix."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_nnunet.settings.yaml_tree import load, loader, unfit_values
from nnunet_jobs.contract.failure import ConfigError

ENDINGS = (".yaml", ".yml")
"""Of files that are read; in any mixture of capitals."""


class Section(BaseModel):
    """Base: unknown fields are refused, values are of the type they should be, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class WrongField(ValueError):
    """An error about a field of a section, which pydantic collects because it is a ValueError.

    Args:
        error: What is wrong; made of ``parts`` if None.
        parts: Of a :class:`~nnunet_jobs.contract.failure.ConfigError`, whose field is the path in the file, such as
            ``pool.name``.
    """

    def __init__(self, error: ConfigError | None = None, **parts: Any) -> None:
        self.error = error or ConfigError(**parts)
        super().__init__(str(self.error))


Model = TypeVar("Model", bound=Section)


def read_model(path: Path, model: type[Model], *, error: type[Exception], hint: str) -> Model:
    """Read and check one file.

    Args:
        error: What to raise.
        hint: What the file must begin with, and where its fields are explained.

    Raises:
        error: the file is not YAML, a key stands twice in one mapping, or a field is unknown, missing or out of range;
            one line for each fault.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data, repeated = load(text)
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"{path}: cannot be read: {reason}") from reason
    except yaml.YAMLError as reason:
        raise error(f"{path}: not valid YAML: {reason}") from reason
    if not isinstance(data, dict):
        raise error(f"{path}: must be a mapping {hint}")
    faults = [f"{path}:{line}: {message}" for line, message in repeated]
    for location, message in unfit_values(data):
        faults.append(f"{path}:{_line(text, location)}: {'.'.join(map(str, location)) or 'the file'}: {message}")
    if faults:
        raise error("\n".join(faults))
    try:
        return model.model_validate(data)
    except ValidationError as reason:
        raise error("\n".join(_explain(path, text, model, reason))) from None


def location_of(error: ConfigError) -> tuple[str, ...]:
    """Where in a file the field of an error is, without what follows the name of a mapping or list."""
    return tuple((error.field or "").partition("[")[0].split("."))


def line_of(path: Path, *location: str) -> int:
    """Line of a field in a file that :func:`read_model` has read; the line above it where the file does not name the field."""
    return _line(path.read_text(encoding="utf-8"), location)


def yaml_files(names: Iterable[Path]) -> list[Path]:
    """Those of some paths that are YAML files by their ending and not hidden, in the order of their names."""
    return sorted(path for path in names if path.suffix.lower() in ENDINGS and not path.name.startswith("."))


def _explain(path: Path, text: str, model: type[Section], error: ValidationError) -> Iterator[str]:
    """One line a fault: ``file:line: field=value: what is wrong and the fix``."""
    for fault in error.errors(include_url=False):
        location = tuple(
            part for part in fault["loc"] if isinstance(part, int) or not str(part).startswith(("int", "literal", "constrained"))
        )
        field = ".".join(str(part) for part in location)
        message = fault["msg"]
        if isinstance(wrong := fault.get("ctx", {}).get("error"), WrongField):
            yield f"{path}:{_line(text, location_of(wrong.error))}: {wrong}"
            continue
        if fault["type"] == "extra_forbidden":
            message = f"unknown field; {_suggest(model, location)}"
        elif fault["type"] == "missing":
            message = "is missing; add it"
        elif not isinstance(fault["input"], dict):
            field = f"{field}={fault['input']!r}"
        yield f"{path}:{_line(text, location)}: {field}: {message}"


def _suggest(model: type[Section], location: tuple[int | str, ...]) -> str:
    """The nearest known field of the section that ``location`` points into, else all of them."""
    section: Any = model
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation if hasattr(section, "model_fields") else None
        section = annotation if isinstance(annotation, type) else next(iter(typing.get_args(annotation)), None)
    known = list(getattr(section, "model_fields", ()))
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"remove it; known here: {', '.join(known)}"


def _line(text: str, location: tuple[int | str, ...]) -> int:
    """Line of the deepest part of ``location`` that the file has."""
    node = yaml.compose(text, Loader=loader())
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
