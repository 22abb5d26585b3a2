"""The commands and code that the documentation shows, as a reader would copy them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
OF_PROJECT = tuple(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))
PAGES = (*OF_PROJECT, *sorted((PROJECT / "docs").rglob("*.md")), *sorted((PROJECT / "include").rglob("README.md")))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OURS = re.compile(r"(?:airflow nnunet|python -m (?:nnunet_jobs|airflow_nnunet)) [a-z][^`\n\"']*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """One block or line.

    Attributes:
        page: Path relative to the project.
        language: Language of a fenced block; ``console`` for the lines of an indented one.
        text: Without the indentation, and lines that a backslash continues in one.
    """

    page: str
    language: str
    text: str


def snippets(*pages: Path) -> Iterator[Snippet]:
    """Every fenced block, and every line of an indented block."""
    for page in pages or PAGES:
        name = page.relative_to(PROJECT).as_posix()
        text = page.read_text()
        for language, body in _FENCE.findall(text):
            yield Snippet(page=name, language=language, text=body)
        plain = _FENCE.sub("", text).replace("\\\n", " ")
        lines = plain.splitlines()
        for number, line in enumerate(lines):
            block = line.startswith("    ") and (number == 0 or not lines[number - 1].strip() or lines[number - 1].startswith("    "))
            if block and re.match(r"    [A-Za-z]", line):
                yield Snippet(page=name, language="console", text=line.strip())


def said_in_passing() -> Iterator[tuple[str, str]]:
    """Commands of ours in running text, docstrings, messages and settings: (file, command)."""
    folders = ("plugins", "dags", "include", "docs", "docker")
    files = [path for folder in folders for path in (PROJECT / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml", ".template")]
    for path in sorted([*files, *OF_PROJECT, PROJECT / "airflow.cfg.template"]):
        for command in _OURS.findall(path.read_text()):
            yield path.relative_to(PROJECT).as_posix(), command


def words(line: str) -> list[str]:
    """A line of usage as the words of one real call: no comment, options in brackets given, the first of alternatives taken."""
    line = re.split(r"\s{2,}#|\s#\s", line)[0]
    line = re.sub(r"\[(--[^\]]*)\]", r"\1", line)
    found = shlex.split(line)
    while "|" in found:  # the word after it belongs to the other choice, which a call may give as well
        found.remove("|")
    return found
