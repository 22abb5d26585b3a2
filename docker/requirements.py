"""Prints the requirements of extras of pyproject.toml, for an image that has nnunet_jobs without Airflow."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main(extras: list[str], project: Path) -> int:
    """Print one requirement a line. An unknown extra is an error."""
    known: dict[str, list[str]] = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    unknown = sorted(set(extras) - set(known))
    if unknown or not extras:
        print(f"extras={unknown}: name some of {', '.join(known)}", file=sys.stderr)
        return 2
    print("\n".join(dict.fromkeys(requirement for extra in extras for requirement in known[extra])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).with_name("pyproject.toml")))
