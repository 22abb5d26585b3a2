"""Writes configuration and secrets of a private Airflow, from the project's template."""

from __future__ import annotations

import base64
import configparser
import io
import json
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

from nnunet_jobs.contract.storage.files import write_private

USER = "admin"


def password_file(home: Path) -> Path:
    """Return the file with the generated password of :data:`USER`."""
    return home / "passwords.json"


def read_config(home: Path) -> configparser.ConfigParser:
    """Read the configuration below ``home``, which is empty before it is written."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(home / "airflow.cfg")
    return config


def write_config(home: Path, *, template: Path, dags: Path, settings: Mapping[str, str], port: int | None) -> None:
    """Write the configuration: the template, changed by own options and by the caller's. Secrets are made once.

    Args:
        home: AIRFLOW_HOME, which must exist.
        template: Template of the project.
        dags: Folder with DAG files.
        settings: Options by ``section.option``.
        port: Port of the API server and UI; a free one if None.
    """
    earlier = read_config(home)
    config = configparser.ConfigParser(interpolation=None)
    config.read(template)
    port = port or _free_port()
    own = {
        "core.dags_folder": str(dags),
        "core.plugins_folder": str(home / "plugins"),
        "core.load_examples": "False",
        "core.fernet_key": earlier.get("core", "fernet_key", fallback=base64.urlsafe_b64encode(os.urandom(32)).decode()),
        "core.simple_auth_manager_users": f"{USER}:admin",
        "core.simple_auth_manager_passwords_file": str(password_file(home)),
        "core.execution_api_server_url": f"http://127.0.0.1:{port}/execution/",
        "database.sql_alchemy_conn": f"sqlite:///{home / 'airflow.db'}",
        "logging.base_log_folder": str(home / "logs"),
        "api.host": "127.0.0.1",
        "api.port": str(port),
        "api.base_url": f"http://127.0.0.1:{port}",
        "api.workers": "1",
        "api.secret_key": earlier.get("api", "secret_key", fallback=secrets.token_urlsafe(32)),
        "api_auth.jwt_secret": earlier.get("api_auth", "jwt_secret", fallback=secrets.token_urlsafe(48)),
        "scheduler.scheduler_idle_sleep_time": "0.5",
        "triggerer.job_heartbeat_sec": "2",
        "dag_processor.parsing_processes": "1",
        "dag_processor.print_stats_interval": "0",
    }
    for name, value in (own | dict(settings)).items():
        section, _, option = name.partition(".")
        if not config.has_section(section):
            config.add_section(section)
        config.set(section, option, value)
    (home / "logs").mkdir(exist_ok=True)
    (home / "plugins").mkdir(exist_ok=True)
    if not password_file(home).exists():
        write_private(password_file(home), json.dumps({USER: secrets.token_urlsafe(12)}).encode())
    text = io.StringIO()
    config.write(text)
    write_private(home / "airflow.cfg", text.getvalue().encode())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
