"""Renders pages from the files of ``templates/``. Jinja2 escapes all values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.ext import Extension

from nnunet_jobs.report.facts import number

_LIMIT = 400


def render(template: str, **values: Any) -> str:
    """Render a page.

    Args:
        template: Name of a file in ``templates/``.
        values: Values of the names in the template.
    """
    return _environment().get_template(template).render(values)


def shown(value: object, limit: int = _LIMIT) -> str:
    """Format any string for a page: cut it, and show unprintable characters (line breaks, direction marks) as codes.

    Args:
        value: Shown as ``str`` gives it.
        limit: Largest number of characters.
    """
    text = str(value)
    text = text if len(text) <= limit else f"{text[:limit]}…"
    if not text.isprintable():
        text = "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)
    return text


class _Compact(Extension):
    """Removes line breaks and indentation of templates, to make pages of many cases smaller."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """See Jinja2."""
        return "".join(line.strip() for line in source.splitlines())


def _kind(severity: str) -> str:
    """Class of a fault in the style sheet."""
    return "bad" if severity == "error" else "look"


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined, extensions=[_Compact]
    )
    filters: dict[str, Callable[..., str]] = {
        "shown": shown,
        "thousands": lambda count: f"{count:,}",
        "tenth": lambda size: f"{size:.1f}",
        "kind": _kind,
        "number": number,
    }
    made.filters |= filters
    return made
