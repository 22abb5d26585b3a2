"""Checks uploads for both REST services: their size while they arrive, and whether the model reads files of their kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.http.problems import Problem

FIELD = "images"
MOST_FILES = 64
MIB = 1 << 20
FILE = {"type": "string", "format": "binary"}
"""A file in an OpenAPI document."""
FILES = {"type": "array", "items": FILE, "description": "One file a channel, in the model's order."}
"""The form's field of images in an OpenAPI document."""
_GZIP, _NIFTI = b"\x1f\x8b", (b"n+1\0", b"n+2\0")
_MEDIA_TYPES = ("application/gzip", "application/octet-stream")

Message = MutableMapping[str, Any]


class LimitedBody:
    """Wraps a request's ASGI ``receive`` and stops when the body is larger than allowed.

    Args:
        declared: The request's Content-Length, if it has one.
        limit_mib: Limit in MiB of the whole body.
        setting: Name of the setting of the limit, for the message.

    Raises:
        Problem: 413; raised at once if the declared length is too large.
    """

    def __init__(self, receive: Callable[[], Awaitable[Message]], *, declared: str | None, limit_mib: int, setting: str) -> None:
        self._receive = receive
        self._left = limit_mib * MIB
        self._limit_mib, self._setting = limit_mib, setting
        if int(declared or 0) > self._left:
            raise self._too_large()

    async def __call__(self) -> Message:
        """Return the next message of the request."""
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise self._too_large()
        return message

    def _too_large(self) -> Problem:
        return Problem(413, f"the request is larger than {self._limit_mib} MiB; send fewer or compressed images, or raise {self._setting}")


def documented_body(**schemas: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request for the OpenAPI document of a route.

    Args:
        schemas: ``form`` and ``json``: the required fields and all fields with their schemas.
    """
    kinds = {"form": "multipart/form-data", "json": "application/json"}
    content = {kinds[kind]: {"schema": {"type": "object", **schema, "additionalProperties": False}} for kind, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


def media_type(name: str) -> str:
    """Return the media type of a segmentation's file."""
    return _MEDIA_TYPES[not name.endswith(".gz")]


def documented_segmentation(description: str) -> dict[int | str, dict[str, Any]]:
    """Return the success response for the OpenAPI document of a route: a segmentation, or JSON on request."""
    files = {kind: {"schema": FILE} for kind in _MEDIA_TYPES}
    return {200: {"description": description, "content": {**files, "application/json": {"schema": {"type": "object"}}}}}


def require_kind(path: Path, file_ending: str, *, channel: int) -> None:
    """Refuse a file that is obviously of another kind; the reader checks the rest.

    Raises:
        Problem: 415, for a file of another kind.
    """
    with open(path, "rb") as file:
        head = file.read(352)
    good = True
    if file_ending.endswith(".gz"):
        good = head.startswith(_GZIP)
    elif file_ending == ".nii":
        good = head[344:348] in _NIFTI
    if not good:
        raise Problem(415, f"file {channel:04d}: is not a {file_ending} file, which this model reads")
