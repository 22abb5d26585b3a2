"""Makes problem documents (RFC 9457) of both REST services: ``detail`` for people, ``status`` and ``faults`` for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from nnunet_jobs.contract.failure import Fault

MEDIA_TYPE = "application/problem+json"
_STATUSES = (404, 413, 415, 422, 500, 503, 504)


class Problem(Exception):
    """A request ends with an error document. Each service chooses its own response class."""

    def __init__(self, status: int, detail: str, *, faults: Sequence[Fault] = (), retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.faults = tuple(faults)
        self.retry_after_s = retry_after_s

    def document(self) -> dict[str, Any]:
        """Return the body as a JSON object."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.faults:
            body["faults"] = [asdict(fault) for fault in self.faults]
        return body

    def headers(self) -> dict[str, str]:
        """Return the headers of the response."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def in_words(errors: Sequence[Mapping[str, Any]]) -> str:
    """Format the errors of pydantic or FastAPI: each field with its fault."""
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in errors)


def documented(*statuses: int) -> Mapping[int | str, dict[str, Any]]:
    """Return problem responses for the OpenAPI document of a route."""
    schema = {
        "type": "object",
        "required": ["title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "faults": {"type": "array", "items": {"type": "object"}},
        },
    }
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses or _STATUSES
    }
