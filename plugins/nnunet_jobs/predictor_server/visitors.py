"""Whose requests are answered: those that name this server by a name it was started for, and no web page of another site.

The server has no login, and a browser on this machine reaches loopback for any page that it shows. A page of another site sends its own
``Origin`` or ``Sec-Fetch-Site``; one whose name was made to point to this machine (DNS rebinding) sends that name as ``Host``.
"""

from __future__ import annotations

import logging
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from nnunet_jobs.contract.http.loopback import is_loopback
from nnunet_jobs.contract.http.problem_responses import respond
from nnunet_jobs.contract.http.problems import Problem

log = logging.getLogger("nnunet_jobs")

_OTHER_SITES = ("cross-site", "same-site")  # another port of this machine is the same site for a browser


class KnownVisitors:
    """ASGI middleware that refuses a foreign ``Host`` with 400 and a foreign web page with 403.

    Args:
        names: Host names that clients may call the server by, without ports, beside loopback addresses.
        allowed: Further ones, such as a proxy's, whose pages may use the server too.
        without_dots: Any name without a dot will do, for a Unix socket: clients make one up, and a page of the internet
            has a name with a dot.
    """

    def __init__(self, app: ASGIApp, *, names: tuple[str, ...], allowed: tuple[str, ...] = (), without_dots: bool = False) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)
        self._allowed = frozenset(name.lower() for name in allowed)
        self._without_dots = without_dots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refused request here, and hand on every other."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        problem = self._problem(Headers(scope=scope))
        if problem is None:
            await self._app(scope, receive, send)
            return
        log.warning("a request was refused: %s", problem.detail)
        await respond(problem)(scope, receive, send)

    def _problem(self, headers: Headers) -> Problem | None:
        hosts = headers.getlist("host")
        if len(hosts) > 1 or (hosts and hosts[0] and not self._known(f"//{hosts[0]}")):
            return Problem(400, "Host: this server was not started for that name; ask by one it knows, or start it with --allow-host NAME")
        origins = headers.getlist("origin")
        own = {f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts}
        foreign = [origin for origin in origins if origin not in own and _host(origin) not in self._allowed]
        if foreign or (not origins and headers.get("sec-fetch-site") in _OTHER_SITES):
            return Problem(403, "Origin: pages of other sites may not use this server; start it with --allow-host NAME for a site of yours")
        return None

    def _known(self, address: str) -> bool:
        host = _host(address)
        if self._without_dots and re.fullmatch(r"[a-z0-9_-]+", host):
            return True
        return host in self._names or host in self._allowed or is_loopback(host)


def _host(address: str) -> str:
    """The name or address in an origin, or behind ``//``, in small letters; empty where there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
