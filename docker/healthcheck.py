"""Checks whether a service is healthy, without starting all of Airflow as `jobs check` and `celery inspect` do.

healthcheck.py URL [COMPONENT]     the URL answers, and names the component healthy
healthcheck.py --socket PATH PAGE  a page of a server on a Unix socket is answered with 200
healthcheck.py --worker            this host's Celery worker answers through the broker
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

BROKER_URL = Path("/run/secrets/broker_url")
TIMEOUT_S = 10


def ask(url: str, component: str | None) -> None:
    """Ask Airflow's health pages, which answer as ``{"triggerer": {"status": "healthy"}}``.

    Raises:
        SystemExit: There is no answer, or the component is not healthy.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for local services
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            text = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise SystemExit(f"{url}: {error}") from error
    if component is None:
        return
    found = json.loads(text).get(component) or {}
    if found.get("status") != "healthy":
        raise SystemExit(f"{url}: {component} is {found.get('status')}, last heartbeat {found.get(f'latest_{component}_heartbeat')}")


def ask_socket(path: str, page: str) -> None:
    """Ask for a page of a server that listens on a Unix socket.

    Raises:
        SystemExit: There is no answer, or the status is not 200.
    """
    connection = http.client.HTTPConnection("server", timeout=TIMEOUT_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(TIMEOUT_S)
    try:
        connection.sock.connect(path)
        connection.request("GET", page)
        answer = connection.getresponse()
        text = answer.read(200).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        raise SystemExit(f"{path}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path}: {page} says {answer.status} {text}")


def ping(broker: str, worker: str) -> None:
    """Ask one Celery worker for an answer.

    Raises:
        SystemExit: There is no answer.
    """
    from celery import Celery

    with Celery(broker=broker, set_as_current=False) as app:
        answer = app.control.inspect(destination=[worker], timeout=TIMEOUT_S).ping()
    if not answer:
        raise SystemExit(f"{worker} does not answer within {TIMEOUT_S} s")


def main(arguments: list[str]) -> None:
    """Exit with 0 if the service is healthy, else with 1 and the reason, which `docker inspect` shows."""
    if arguments == ["--worker"]:
        ping(BROKER_URL.read_text().strip(), f"celery@{socket.gethostname()}")
    elif len(arguments) == 3 and arguments[0] == "--socket":
        ask_socket(arguments[1], arguments[2])
    elif 1 <= len(arguments) <= 2:
        ask(arguments[0], arguments[1] if len(arguments) == 2 else None)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
