"""Receives a request's images into its folder under limits, with names of the server instead of the client."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from nnunet_jobs.contract.http.problems import Problem
from nnunet_jobs.contract.http.uploads import FIELD, MOST_FILES, LimitedBody, require_kind
from nnunet_jobs.prediction.cases import Case

_NAME = "case"  # of the images, in messages too: a client's own file names may say who the patient is


async def receive(request: Request, folder: Path, *, file_ending: str, channels: int, limit_mib: int) -> Case:
    """Read the form and write its images.

    Args:
        folder: Folder of the request.
        file_ending: File ending of the model.
        channels: Channels of the model.
        limit_mib: Limit in MiB of the whole body.

    Raises:
        Problem: 413, 415 or 422, with the fix.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, f"send multipart/form-data with one file a channel in the field '{FIELD}', in the model's order")
    body = LimitedBody(request.receive, declared=request.headers.get("content-length"), limit_mib=limit_mib, setting="--upload-mib")
    limited = Request(request.scope, body)
    try:
        async with limited.form(max_files=MOST_FILES, max_fields=MOST_FILES) as form:
            uploads = [item for item in form.getlist(FIELD) if isinstance(item, UploadFile)]
            other = sorted({name for name, _ in form.multi_items()} - {FIELD})
            if other or len(uploads) != channels:
                has = f"; unknown: {', '.join(other)[:200]}" if other else ""
                raise Problem(
                    422, f"field '{FIELD}': has {len(uploads)} files; the model needs {channels}, one a channel, in its order{has}"
                )
            images = []
            for channel, upload in enumerate(uploads):
                path = folder / f"{_NAME}_{channel:04d}{file_ending}"
                await asyncio.to_thread(_write, upload.file, path)
                await asyncio.to_thread(require_kind, path, file_ending, channel=channel)
                images.append(path)
    except HTTPException as error:
        raise Problem(422, f"the form cannot be read: {error.detail}") from error
    return Case(case=folder.name, images=tuple(images))


def _write(source: Any, path: Path) -> None:
    with open(path, "xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
