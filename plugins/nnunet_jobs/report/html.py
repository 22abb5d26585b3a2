"""The smallest pieces of the report's page. Whatever comes from outside becomes HTML here, and only here."""

from __future__ import annotations

import html
from collections.abc import Iterable


def text(value: object, limit: int = 400) -> str:
    """Any text as harmless HTML: escaped, cut, and what cannot be printed (line breaks, direction marks) shown as its code."""
    shown = str(value)
    shown = shown if len(shown) <= limit else f"{shown[:limit]}…"
    if not shown.isprintable():
        shown = "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in shown)
    return html.escape(shown)


def items(lines: Iterable[str]) -> str:
    """List items."""
    return "".join(f"<li>{line}</li>" for line in lines)


def heads(*names: str, kind: str = "") -> str:
    """Head cells of a table."""
    mark = f' class="{kind}"' if kind else ""
    return "".join(f"<th{mark}>{name}</th>" for name in names)


def more(count: int, limit: int, what: str) -> str:
    """A note where only the first lines are shown."""
    return f'<p class="note">The first {limit:,} of {count:,} {what}.</p>' if count > limit else ""
