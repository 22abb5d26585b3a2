"""Opens the listening socket and ends the server: after SIGTERM, running requests may finish within a time limit."""

from __future__ import annotations

import logging
import signal
import socket
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_jobs.contract.failure import ConfigError

if TYPE_CHECKING:
    from nnunet_jobs.predictor_server.app import Server

log = logging.getLogger("nnunet_jobs")

_BACKLOG = 128


def listen(app: Any, server: Server) -> None:
    """Serve until SIGTERM or SIGINT, then finish running requests."""
    import uvicorn

    class Draining(uvicorn.Server):
        def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
            server.draining = True
            super().handle_exit(sig, frame)

    settings = server.settings
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # a client's path may hold what must not be in a log
        timeout_graceful_shutdown=round(settings.drain_s),
        lifespan="on",
        server_header=False,
        backlog=_BACKLOG,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again when it is done; we still have to clean up
    listening = _socket(settings.host, settings.port, settings.uds)
    ours = settings.uds and settings.uds.stat().st_ino
    try:
        name = listening.getsockname()
        log.info("listening on %s", settings.uds or f"http://{name[0]}:{name[1]}")
        Draining(config).run(sockets=[listening])
    finally:
        listening.close()
        if settings.uds is not None and settings.uds.exists() and settings.uds.stat().st_ino == ours:  # not the next server's
            settings.uds.unlink(missing_ok=True)


def _socket(host: str, port: int, uds: Path | None) -> socket.socket:
    if uds is not None:
        _clear(uds)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(uds))
        uds.chmod(0o660)
        return listening
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    return listening


def _clear(uds: Path) -> None:
    """Remove the socket that a killed server left, or one that only finishes its last requests.

    Raises:
        ConfigError: Another server listens there, or it is not a socket.
    """
    if not uds.exists():
        return
    if not uds.is_socket():
        raise ConfigError(field="uds", value=str(uds), problem="exists and is not a socket", fix="name a path for the server alone")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(uds))
        except ConnectionRefusedError:
            uds.unlink(missing_ok=True)
        else:
            raise ConfigError(field="uds", value=str(uds), problem="another server listens there", fix="give each its own path")
