"""Hooks of the documentation's site: roles in docstrings become plain code, and nothing is loaded from other hosts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# ``:class:`~a.b.Name` `` in the output of mkdocstrings: the role, then a code element.
_ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):<code>(~?)([\w.]+)</code>")
# The theme's script would load two libraries from here, for diagrams, which no page has, and for very old browsers.
_ELSEWHERE = "https://unpkg.com/"


def on_page_content(html: str, **_kwargs: Any) -> str:
    """Replace roles such as ``:class:``, which Markdown does not know, by the name.

    Args:
        html: Content of the page, made from Markdown.

    Returns:
        The changed content. A name after ``~`` is shown without its module, as in Sphinx.
    """
    return _ROLE.sub(lambda found: f"<code>{found[2].rpartition('.')[2] if found[1] else found[2]}</code>", html)


def on_post_build(config: Any, **_kwargs: Any) -> None:
    """Remove the addresses of other hosts from the theme's scripts.

    Args:
        config: Configuration of the site, of which ``site_dir`` is used.
    """
    for path in list(Path(config["site_dir"]).rglob("*.*")):
        if path.suffix == ".map":
            path.unlink()  # only for debugging the theme itself
        elif path.suffix == ".js" and _ELSEWHERE in (text := path.read_text()):
            path.write_text(text.replace(_ELSEWHERE, "./"))
