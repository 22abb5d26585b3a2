"""Writes a request's body into a folder: limits its size, chooses the file names, and checks it before it is queued."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from airflow_nnunet.prediction_api.form import read_form
from airflow_nnunet.prediction_api.models import ModelFacts, model_facts
from airflow_nnunet.prediction_api.store import Draft
from airflow_nnunet.prediction_api.tenants import Tenant
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.http.problems import Problem, in_words
from nnunet_jobs.contract.http.uploads import FIELD, MIB, LimitedBody, require_kind
from nnunet_jobs.contract.storage.files import open_new
from nnunet_jobs.contract.storage.workspace import Workspace

_JSON_MIB = 1
_SETTING = "predictions_upload_mib in section [nnunet]"


class PredictionFields(BaseModel):
    """Holds the fields of a request beside its images."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = Field(pattern=r"^[A-Za-z0-9_-]{1,120}$")
    model: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    cases: str | None = Field(default=None, min_length=1, max_length=1000)


async def receive(request: Request, tenant: Tenant, draft: Draft) -> PredictionFields:
    """Write the request's images into the draft and sync them to the disk.

    Returns:
        The request's fields, with the dataset's full name.

    Raises:
        Problem: 413, 415 or 422, whose text has the fix.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        asked = await _form(request, tenant, draft)
    elif kind == "application/json":
        asked = await _json(request, tenant, draft)
    else:
        raise Problem(
            415, f"send multipart/form-data with 'dataset' and one file for each channel in '{FIELD}', or JSON with 'dataset' and 'cases'"
        )
    await asyncio.to_thread(draft.complete, dataset=asked.dataset, model=asked.model)
    return asked


async def _form(request: Request, tenant: Tenant, draft: Draft) -> PredictionFields:
    fields, files = await read_form(_limited(request, tenant.upload_mib), draft.folder)
    asked = _checked({name: value for name, value in fields.items() if value != "" or name == "dataset"})
    if asked.cases is not None:
        raise Problem(422, f"cases: is for JSON requests; here the images are in '{FIELD}'")
    facts = await asyncio.to_thread(_facts, tenant.workspace, asked)
    if len(files) != facts.channels:
        raise Problem(422, f"{FIELD}: has {len(files)} files; the model needs {facts.channels}, one for each channel, in its order")
    for channel, file in enumerate(files):
        os.rename(file, image := draft.image(channel, facts.file_ending))
        await asyncio.to_thread(require_kind, image, facts.file_ending, channel=channel)
    return asked.model_copy(update={"dataset": facts.dataset})


async def _json(request: Request, tenant: Tenant, draft: Draft) -> PredictionFields:
    try:
        data = json.loads(await _limited(request, _JSON_MIB).body())
    except (ValueError, RecursionError) as error:
        raise Problem(422, "the body is not JSON") from error
    asked = _checked(data)
    if asked.cases is None:
        raise Problem(422, "cases: is missing; name the image of one case, or the folder of its channels, below an input root")
    facts = await asyncio.to_thread(_facts, tenant.workspace, asked)
    await asyncio.to_thread(_copy, tenant, asked.cases, facts, draft)
    return asked.model_copy(update={"dataset": facts.dataset})


def _limited(request: Request, limit_mib: int) -> Request:
    body = LimitedBody(request.receive, declared=request.headers.get("content-length"), limit_mib=limit_mib, setting=_SETTING)
    return Request(request.scope, body)


def _checked(data: Any) -> PredictionFields:
    if not isinstance(data, dict):
        raise Problem(422, "the body must be a JSON object")
    try:
        return PredictionFields.model_validate(data)
    except ValidationError as error:
        raise Problem(422, in_words(error.errors())[:2000]) from error


def _facts(workspace: Workspace, asked: PredictionFields) -> ModelFacts:
    try:
        return model_facts(workspace, asked.dataset, asked.model)
    except (ConfigError, FileNotFoundError) as error:
        # The error's own message has names of the server's folders and of other datasets.
        raise Problem(422, "dataset or model: does not exist, or no model of the dataset is promoted") from error


def _keep(source: BinaryIO, target: Path, facts: ModelFacts, channel: int) -> None:
    fd = open_new(target, os.O_WRONLY | os.O_EXCL)
    with open(fd, "wb") as file:
        shutil.copyfileobj(source, file, MIB)
    require_kind(target, facts.file_ending, channel=channel)


def _copy(tenant: Tenant, cases: str, facts: ModelFacts, draft: Draft) -> None:
    """Copy the images of a path under names of our own, because theirs may identify a patient."""
    sources = _images(tenant.workspace, cases, facts)
    if len(sources) != facts.channels:
        raise Problem(
            422, f"cases: has {len(sources)} images that end with {facts.file_ending}; the model needs {facts.channels} of one case"
        )
    left = tenant.upload_mib * MIB
    for channel, source in enumerate(sources):
        # The path was checked a moment ago. A link that replaced it since then is not followed.
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            left -= os.fstat(fd).st_size
            if left < 0:
                raise Problem(413, f"cases: the images are larger than {tenant.upload_mib} MiB; raise {_SETTING}")
            _keep(file, draft.image(channel, facts.file_ending), facts, channel)


def _images(workspace: Workspace, cases: str, facts: ModelFacts) -> list[Path]:
    """Return the real files of one case in the order of the channels. Missing and forbidden paths give the same answer."""
    found: Path | None = None
    if not os.path.isabs(cases) and "\0" not in cases and "\n" not in cases:
        for root in workspace.input_roots:
            with contextlib.suppress(ConfigError, OSError):  # such as a name that is too long
                path = workspace.confine_incoming(Path(root) / cases, field="cases")
                if path.exists():
                    found = path
                    break
    if found is None:
        raise Problem(422, "cases: there is no such file or folder below the input roots; give a path relative to one of them")
    if found.is_file():
        return [found] if found.name.endswith(facts.file_ending) else []
    images = []
    for name in sorted(os.listdir(found)):
        if name.endswith(facts.file_ending) and not name.startswith("."):
            with contextlib.suppress(ConfigError):
                images.append(workspace.confine_incoming(found / name, field="cases"))
    return images
