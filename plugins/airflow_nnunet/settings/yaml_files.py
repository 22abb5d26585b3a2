"""Checks YAML files against pydantic models and reports every fault with file, line, field, value and fix."""

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
"""Endings of the files that are read; upper and lower case are the same."""


class Section(BaseModel):
    """Base class that refuses unknown fields and values of another type, and whose objects cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class WrongField(ValueError):
    """An error in a field of a section. It is a ValueError so that pydantic collects it.

    Args:
        error: The error; made of ``parts`` if None.
        parts: Arguments of a :class:`~nnunet_jobs.contract.failure.ConfigError`. Its field is the path in the file,
            such as ``pool.name``.
    """

    def __init__(self, error: ConfigError | None = None, **parts: Any) -> None:
        self.error = error or ConfigError(**parts)
        super().__init__(str(self.error))


Model = TypeVar("Model", bound=Section)


def read_model(path: Path, model: type[Model], *, error: type[Exception], hint: str) -> Model:
    """Read and check one file.

    Args:
        error: Class of the exception to raise.
        hint: Text that says what the file must begin with and where its fields are explained.

    Raises:
        error: The file is not YAML, a mapping has a key twice, or a field is unknown, missing or out of range. The
            message has one line for each fault.
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
    """Return the path of an error's field in its file, without the key or index of a mapping or list."""
    return tuple((error.field or "").partition("[")[0].split("."))


def line_of(path: Path, *location: str) -> int:
    """Return the line of a field in a file that :func:`read_model` has read, or of its section if it is left out."""
    return _line(path.read_text(encoding="utf-8"), location)


def yaml_files(names: Iterable[Path]) -> list[Path]:
    """Return the paths that have a YAML ending and are not hidden, sorted by name."""
    return sorted(path for path in names if path.suffix.lower() in ENDINGS and not path.name.startswith("."))


def _explain(path: Path, text: str, model: type[Section], error: ValidationError) -> Iterator[str]:
    """Yield one line for each fault: ``file:line: field=value: problem and fix``."""
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
    """Suggest the known field that is most like the one at ``location``, or list all fields of its section."""
    section: Any = model
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation if hasattr(section, "model_fields") else None
        section = annotation if isinstance(annotation, type) else next(iter(typing.get_args(annotation)), None)
    known = list(getattr(section, "model_fields", ()))
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"remove it; known here: {', '.join(known)}"


def _line(text: str, location: tuple[int | str, ...]) -> int:
    """Return the line of the deepest part of ``location`` that the file has."""
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
