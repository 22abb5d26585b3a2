"""Starts nginx in front of predictor servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from devtools.testbed.nginx import lay_out, running
from devtools.testbed.serving import Service


@contextlib.contextmanager
def front(sockets: Path, count: int) -> Iterator[Path]:
    """Start nginx with the project's own files in front of the servers."""
    folder = sockets / "nginx"
    folder.mkdir()
    changes = [
        ("/run/nnunet/predictors", str(sockets)),
        ("listen 127.0.0.1:8081", f"listen unix:{sockets}/health"),
        ("include /etc/nginx/hosts/*.conf;", ""),
        ("include /etc/nginx/streams/*.conf;", ""),
    ]
    if count == 1:
        changes.append((f"server unix:{sockets}/predictor-2.sock max_fails=0;", ""))
    lay_out(folder, changes, front="predictors.conf")
    service = Service(uds=sockets / "front.sock")
    with running(folder, listens=lambda: service.answers("/healthz")):
        yield sockets / "front.sock"
