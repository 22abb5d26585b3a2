"""Asks a tenant's predictor servers, one after the other. If none answers, the request's own job predicts."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from airflow_nnunet.prediction_api.models import ModelFacts
from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.contract.http.uploads import FIELD

log = logging.getLogger(__name__)

_CONNECT_S = 2.0
_ANSWER_S = 900.0  # longer than a server's own limit, so that the server reports the timeout
_KEPT = ("model", "model_hash", "volumes_ml", "flags", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """Holds a server's answer: bytes of the segmentation, their sha256, and its part of the case's record."""

    server: str
    content: bytes
    sha256: str
    record: dict[str, Any]


def ask_servers(servers: Sequence[str], facts: ModelFacts, images: Sequence[Path]) -> ServerAnswer | None:
    """Return the first answer of a server that is up, is not full and serves exactly this model, or None.

    Raises:
        DataError: A server has read the case and reports a fault of it.
    """
    for address in servers:
        try:
            with connect(address) as client, contextlib.ExitStack() as files:
                answer = client.post(
                    f"/v1/models/{facts.dataset}/predict",
                    params={"model": facts.model, "inline": True},
                    files=[(FIELD, (path.name, files.enter_context(open(path, "rb")))) for path in images],
                )
        except httpx.TransportError as error:
            log.info("predictor server %s does not answer (%s)", address, type(error).__name__)
            continue
        if answer.status_code in (415, 422):
            raise DataError(str(answer.json()["detail"]))
        if answer.status_code != 200:
            log.info("predictor server %s answers %s; not waiting for it", address, answer.status_code)
            continue
        found = _checked(address, answer.json(), facts)
        if found is not None:
            return found
    return None


def _checked(address: str, data: dict[str, Any], facts: ModelFacts) -> ServerAnswer | None:
    """Return the answer, or None if it is of another model or was damaged in transfer."""
    content = base64.b64decode(data["segmentation"])
    sha256 = hashlib.sha256(content).hexdigest()
    if (data["dataset"], data["model_hash"], data["sha256"]) != (facts.dataset, facts.hash, sha256):
        log.error("predictor server %s: its answer has a wrong model or checksum; does it serve another workspace?", address)
        return None
    return ServerAnswer(server=address, content=content, sha256=sha256, record={name: data[name] for name in _KEPT if name in data})


@contextlib.contextmanager
def connect(address: str) -> Iterator[httpx.Client]:
    """Open a client whose addresses are relative to a server's address."""
    url = urlsplit(address)
    local = url.scheme != "https"
    transport = httpx.HTTPTransport(uds=url.path) if url.scheme == "unix" else None
    timeout = httpx.Timeout(_ANSWER_S, connect=_CONNECT_S)
    # A proxy that the environment names must not get what goes to this machine.
    with httpx.Client(
        base_url="http://server" if transport else address.rstrip("/"), transport=transport, timeout=timeout, trust_env=not local
    ) as client:
        yield client
