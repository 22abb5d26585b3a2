"""A request's images: received into its folder under limits, named by us, never by the client."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from nnunet_jobs.prediction.cases import Case
from nnunet_jobs.serving.problems import Problem

FIELD = "images"
CASE = "case"
"""Every request's case is called this: a client's file name may say who the patient is."""

_MIB = 1 << 20
_MOST_FILES = 64
_GZIP, _NIFTI = b"\x1f\x8b", (b"n+1\0", b"n+2\0")


async def receive(request: Request, folder: Path, *, file_ending: str, channels: int, limit_mib: int) -> Case:
    """Read the form and write its images.

    Args:
        folder: the request's own. file_ending, channels: of the model. limit_mib: of the whole body.

    Raises:
        Problem: 413, 415 or 422, with the mend.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, f"send multipart/form-data with one file a channel in the field '{FIELD}', in the model's order")
    limited = Request(request.scope, _Limited(request, limit_mib))
    try:
        async with limited.form(max_files=_MOST_FILES, max_fields=_MOST_FILES) as form:
            uploads = [item for item in form.getlist(FIELD) if isinstance(item, UploadFile)]
            other = sorted({name for name, _ in form.multi_items()} - {FIELD})
            if other or len(uploads) != channels:
                has = f"; unknown: {', '.join(other)[:200]}" if other else ""
                raise Problem(
                    422, f"field '{FIELD}': has {len(uploads)} files; the model needs {channels}, one a channel, in its order{has}"
                )
            images = []
            for channel, upload in enumerate(uploads):
                path = folder / f"{CASE}_{channel:04d}{file_ending}"
                await asyncio.to_thread(_write, upload.file, path)
                await asyncio.to_thread(_require_kind, path, file_ending)
                images.append(path)
    except HTTPException as error:
        raise Problem(422, f"the form cannot be read: {error.detail}") from error
    return Case(case=CASE, images=tuple(images))


class _Limited:
    """The request's ``receive`` that stops where the body is larger than allowed."""

    def __init__(self, request: Request, limit_mib: int) -> None:
        self._receive = request.receive
        self._left = limit_mib * _MIB
        self._limit_mib = limit_mib
        if int(request.headers.get("content-length") or 0) > self._left:
            raise self._too_large()

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise self._too_large()
        return message

    def _too_large(self) -> Problem:
        return Problem(413, f"the request is larger than {self._limit_mib} MiB; send fewer or compressed images, or raise --upload-mib")


def _write(source: Any, path: Path) -> None:
    with open(path, "xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _require_kind(path: Path, file_ending: str) -> None:
    """Refuse a file that is plainly of another kind; the reader judges the rest.

    Raises:
        Problem: 415.
    """
    with open(path, "rb") as file:
        head = file.read(352)
    good = True
    if file_ending.endswith(".gz"):
        good = head.startswith(_GZIP)
    elif file_ending == ".nii":
        good = head[344:348] in _NIFTI
    if not good:
        raise Problem(415, f"file {path.stem.rpartition('_')[2][:4]}: is not a {file_ending} file, which this model reads")
