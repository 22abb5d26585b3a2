"""Runs first in every Airflow container: checks that all secrets exist, then executes the command."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

FIX = "make all secrets with: python3 docker/make_secrets.py"
SHORTEST_PASSWORD = 12


def secret_files(environment: Mapping[str, str]) -> dict[str, Path]:
    """Return the file of each setting that Airflow reads from a file: ``AIRFLOW__SECTION__OPTION_CMD=cat FILE``."""
    found = {}
    for name, command in sorted(environment.items()):
        if name.startswith("AIRFLOW__") and name.endswith("_CMD"):
            program, *arguments = shlex.split(command)
            if program == "cat" and len(arguments) == 1:
                found[name.removesuffix("_CMD")] = Path(arguments[0])
    return found


def check_secrets(environment: Mapping[str, str]) -> None:
    """Check the secrets before Airflow does so in every process, with a traceback.

    Raises:
        SystemExit: A file is missing, unreadable or empty.
    """
    for setting, path in secret_files(environment).items():
        _read(path, setting)


def place_passwords(environment: Mapping[str, str]) -> None:
    """Copy the passwords of the UI to a file that Airflow may open for writing, which it needs.

    Airflow creates a password for a user without one and prints it to the log, so a missing password is refused.

    Raises:
        SystemExit: The file is missing, is not JSON, lacks a user, or has a password that is too short.
    """
    source = environment.get("NNUNET_UI_PASSWORDS")
    if not source:
        return
    text = _read(Path(source), "NNUNET_UI_PASSWORDS")
    try:
        passwords = json.loads(text)
    except ValueError as error:
        raise SystemExit(f"secret {source}: not JSON ({error}); {FIX}") from error
    users = [entry.split(":")[0].strip() for entry in environment.get("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "").split(",")]
    if not isinstance(passwords, dict) or not all(users):
        raise SystemExit(f'secret {source}: must be an object such as {{"admin": "..."}} with the users of NNUNET_UI_USERS; {FIX}')
    for user in users:
        if len(str(passwords.get(user, ""))) < SHORTEST_PASSWORD:
            raise SystemExit(f"secret {source}: user {user!r} of NNUNET_UI_USERS has no password of {SHORTEST_PASSWORD} letters; {FIX}")
    target = Path(environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    with open(target, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        json.dump({user: passwords[user] for user in users}, file)


def _read(path: Path, setting: str) -> str:
    try:
        text = path.read_text().strip()
    except OSError as error:
        raise SystemExit(f"secret {path} for {setting}: {error.strerror}; {FIX}") from error
    if not text:
        raise SystemExit(f"secret {path} for {setting}: empty; {FIX}")
    return text


def main(command: list[str]) -> None:
    """Check the secrets, then execute the command."""
    check_secrets(os.environ)
    place_passwords(os.environ)
    if not command:
        raise SystemExit("no command given; compose.yaml has one for each service")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
