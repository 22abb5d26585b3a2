"""What the documentation's site does beyond mkdocs: roles of docstrings become plain code, and nothing is loaded from another host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# ``:class:`~a.b.Name` `` as mkdocstrings leaves it: the role, then a code element.
_ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):<code>(~?)([\w.]+)</code>")
# The theme's script would fetch two libraries from here, for diagrams that no page has and for very old browsers.
_ELSEWHERE = "https://unpkg.com/"


def on_page_content(html: str, **_kwargs: Any) -> str:
    """Replace ``:class:`` and the like, which Markdown does not know, by the name alone.

    Args:
        html: The page's content, made from Markdown.

    Returns:
        The same content; a name after ``~`` is shown without its module, as Sphinx shows it.
    """
    return _ROLE.sub(lambda found: f"<code>{found[2].rpartition('.')[2] if found[1] else found[2]}</code>", html)


def on_post_build(config: Any, **_kwargs: Any) -> None:
    """Take the addresses of other hosts out of the theme's scripts.

    Args:
        config: The site's configuration, of which ``site_dir`` is used.
    """
    for path in list(Path(config["site_dir"]).rglob("*.*")):
        if path.suffix == ".map":
            path.unlink()  # only for debugging the theme itself
        elif path.suffix == ".js" and _ELSEWHERE in (text := path.read_text()):
            path.write_text(text.replace(_ELSEWHERE, "./"))
