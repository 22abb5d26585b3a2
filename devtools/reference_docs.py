"""``python -m devtools.reference_docs`` writes the pages of the reference that are made from code.

A test compares each file with the code, so that no page describes an option or a command that no longer exists.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from airflow_nnunet.__main__ import build_parser
from airflow_nnunet.prediction_api.app import create_app as create_predictions
from airflow_nnunet.provider_info import DICOMWEB_FIELDS, NNUNET_FIELDS, OPTIONS
from devtools import faults_docs, schema_docs
from nnunet_jobs.__main__ import COMMANDS
from nnunet_jobs.__main__ import build_parser as jobs_parser
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.predictor_server.app import Server
from nnunet_jobs.predictor_server.app import create_app as create_server
from nnunet_jobs.predictor_server.settings import ServeSettings

PROJECT = Path(__file__).resolve().parents[1]
_MADE = "This page is made from the code by `python -m devtools.reference_docs`."
_OF_PROGRAMS = [command.name for command in COMMANDS if not command.typed]
_EXIT_WORDS = {
    Exit.DONE: "done",
    Exit.FAILED: "a check failed, or the work did",
    Exit.USAGE: "the command line cannot be parsed, or `validate` cannot look for the dataset",
    Exit.REFUSED: "refused: an argument, a setting, the data or a missing permission",
    Exit.NOT_NOW: "not now: a service does not answer or is full; try again later",
}


def pages() -> dict[str, str]:
    """Return the content of each page by its path in the project."""
    return {
        "docs/reference/faults.md": faults_docs.page(),
        "docs/reference/configuration.md": configuration(),
        "docs/reference/connections.md": connections(),
        "docs/reference/cli.md": command_line(),
        "docs/reference/rest.md": rest(),
        "include/datasets/README.md": schema_docs.reference(),
        "include/teams/README.md": schema_docs.team_reference(),
    }


def configuration() -> str:
    """Return the page of options of section ``[nnunet]``."""
    text = f"""\
# Configuration

This page lists the options of section `[nnunet]` in `airflow.cfg`, for people who set up a site. Each option can also be set in the
environment as `AIRFLOW__NNUNET__<OPTION>`. `airflow.cfg.template` has them with comments, together with Airflow's own options that
matter here. A [connection](connections.md) of type `nnunet` or a [team file](team-yaml.md) overrides some of them.

{_MADE}

"""
    rows = (
        (f"`{name}`", option["type"], f"`{option['default']}`" if option["default"] not in ("", None) else "empty", _meaning(option))
        for name, option in OPTIONS.items()
    )
    return text + _table(("option", "type", "default", "meaning"), rows)


def connections() -> str:
    """Return the page of the fields of both connection types."""
    text = f"""\
# Connections

This page lists the fields of the two connection types, for people who set up a site. `include/connections.example.json` has examples to
import. Keep secrets in Airflow's UI or in a secrets backend, never in files of the project.

{_MADE}

## `nnunet`: a workspace

This connection overrides options of section `[nnunet]` for the tasks that name it. Operators and dataset files name it as `nnunet_conn_id`,
commands as `--conn-id`. The fields are keys of the connection's extra:

"""
    text += _fields(NNUNET_FIELDS)
    text += """
## `dicomweb`: an archive

Set host, port, login and password in the connection itself, and the schema `http` if the archive has no TLS. Certificates are always
checked. The default connection is `dicomweb_default`. The fields are keys of the connection's extra:

"""
    return text + _fields(DICOMWEB_FIELDS)


def command_line() -> str:
    """Return the page of all commands for people, with their arguments, and the exit codes."""
    text = f"""\
# Command line

This page lists every command that people type. There are two sets of commands:

- `airflow nnunet` is available when the package is installed. Without an installation, `python -m airflow_nnunet` is the same.
- `python -m nnunet_jobs` needs the interpreter that has nnU-Net.

{_MADE}

## Exit codes

For every code except 0, stderr has a sentence with the reason.

"""
    text += _table(("code", "meaning"), ((str(int(code)), words) for code, words in _EXIT_WORDS.items()))
    for prefix, parser, left_out in (("airflow nnunet", build_parser(), ()), ("python -m nnunet_jobs", jobs_parser(), _OF_PROGRAMS)):
        text += f"\n## `{prefix}`\n"
        for name, command, summary in _commands(parser):
            if name not in left_out:
                text += f"\n### `{prefix} {name}`\n\n{_sentence(summary)}\n"
                rows = list(_arguments(command))
                text += "\n" + _table(("argument", "meaning"), rows) if rows else ""
    return text


def rest() -> str:
    """Return the page of the routes of both services."""
    text = f"""\
# REST

This page lists the routes of both services, for people who write clients. [Predict by REST](../how-to/rest.md) shows the calls. Errors are
problem documents (RFC 9457): `detail` is for people, `status` and `faults` are for programs.

{_MADE}

## Prediction API

This service is part of Airflow's API server, below `/nnunet-api`. It uses Airflow's logins and permissions. `/nnunet-api/openapi.json`
has the full schema.

"""
    text += _routes(create_predictions())
    text += """
## Predictor server

`python -m nnunet_jobs serve` starts it. It keeps models in memory. It has no login, and listens on loopback or on a Unix socket only.
`/openapi.json` has the full schema.

"""
    # No model is loaded for the list of routes, so the workspace need not exist.
    settings = ServeSettings(workspace=Workspace.below("/data/nnunet"), scratch=Path("/tmp"))  # noqa: S108  never written to
    return text + _routes(create_server(Server(settings, cast("Any", None))))


def _fields(declared: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ((f"`{name}`", field["schema"]["type"][0], field["description"]) for name, field in declared.items())
    return _table(("field", "type", "meaning"), rows)


def _meaning(option: Mapping[str, Any]) -> str:
    return str(option["description"]) + (f" Example: `{option['example']}`" if option["example"] else "")


def _commands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Yield name, parser and summary of each command. Names in a group begin with the group's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                if any(isinstance(inner, argparse._SubParsersAction) for inner in command._actions):
                    yield from _commands(command, f"{before}{name} ")
                else:
                    yield f"{before}{name}", command, summaries.get(name, "")


def _arguments(command: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in command._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        shown = action.metavar if isinstance(action.metavar, str) else action.dest
        if action.choices is not None:
            shown = "{" + ",".join(map(str, action.choices)) + "}"
        takes_value = action.nargs != 0
        name = ", ".join(action.option_strings) + (
            f" {shown if action.metavar or action.choices else shown.upper()}" if takes_value else ""
        )
        words = (action.help or "").replace("\\[", "[").replace("%%", "%")
        yield f"`{name if action.option_strings else shown}`", _sentence(words)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) or not text else f"{text[0].upper()}{text[1:]}."


def _routes(app: Any) -> str:
    rows = []
    for path, methods in app.openapi()["paths"].items():
        for method, route in methods.items():
            codes = ", ".join(sorted(route["responses"]))
            rows.append((f"`{method.upper()} {path}`", " ".join(route.get("description", "").replace("``", "`").split()), codes))
    return _table(("route", "what it does", "answers"), rows)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write every page that differs, or only name them with ``--check``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and exit with 1 if a page is not up to date")
    check = parser.parse_args().check
    outdated = [name for name, content in pages().items() if not _is(PROJECT / name, content)]
    for name in outdated:
        if not check:
            (PROJECT / name).write_text(pages()[name])
        print(f"{'not up to date' if check else 'written'}: {name}")
    return int(check and bool(outdated))


def _is(path: Path, content: str) -> bool:
    return path.is_file() and path.read_text() == content


if __name__ == "__main__":
    sys.exit(main())
