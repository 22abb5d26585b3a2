"""The routes of the prediction API. Each request is a run of its team's DAG: queued, retried and shown by Airflow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.requests import ClientDisconnect

from airflow_nnunet.jobs.task_state import JOB_XCOM
from airflow_nnunet.prediction_api import outcome
from airflow_nnunet.prediction_api.core_api import CoreApi
from airflow_nnunet.prediction_api.intake import PredictionFields, receive
from airflow_nnunet.prediction_api.queue import COME_BACK_S, largest, require_place
from airflow_nnunet.prediction_api.store import REQUEST_ID, Draft, new_id, remove
from airflow_nnunet.prediction_api.tenants import Tenant, load_tenant, tenant_of
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import ConfigError, FailureClass
from nnunet_jobs.contract.http.problem_responses import answer_with_problems, respond
from nnunet_jobs.contract.http.problems import Problem, documented
from nnunet_jobs.contract.http.uploads import FIELD, FILES, documented_body, documented_segmentation, media_type
from nnunet_jobs.contract.storage.files import open_new, try_lock
from nnunet_jobs.contract.storage.permissions import make_folder

log = logging.getLogger(__name__)

_UNKNOWN = "there is no prediction of this id"
_LOOK_S = 0.01
_REFUSALS = (401, 403, 422, 503)
_NAME = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,120}$"}
_BODY = documented_body(
    form={
        "required": ["dataset", FIELD],
        "properties": {
            "dataset": {**_NAME, "description": "Id or full name of a dataset, such as 4 or Dataset004_Hippocampus."},
            "model": {"type": "string", "description": "Model id; the promoted model when left out."},
            FIELD: FILES,
        },
    },
    json={
        "required": ["dataset", "cases"],
        "properties": {
            "dataset": _NAME,
            "model": {"type": ["string", "null"]},
            "cases": {"type": "string", "description": "Image of one case, or folder of its channels, relative to one of the input roots."},
        },
    },
)
RequestId = Annotated[str, InPath(description="Id of a prediction.", max_length=100)]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="The same key of a user means the same prediction; another body with it is refused."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Describes the user who sent a request, and the tenant whose requests the user may see."""

    user: str
    tenant: Tenant
    core: CoreApi


def caller(method: Any) -> Any:
    """Return a dependency that checks that the user may do this with runs of the team's DAG."""

    async def found(request: Request, user: GetUserDep) -> Caller:
        name = user.get_name()
        try:
            tenant = await asyncio.to_thread(tenant_of, name)
        except ConfigError as error:
            log.error("%s", error)
            raise Problem(503, "a setting of the prediction API is wrong; the API server's log says which", retry_after_s=60) from error
        check = requires_access_dag(method, DagAccessEntity.RUN, tenant.dag_id)
        await asyncio.to_thread(check, request, user)
        return Caller(user=name, tenant=tenant, core=CoreApi(request))

    return Depends(found)


def create_app() -> FastAPI:
    """Return the app that the plugin mounts."""
    app = FastAPI(title="nnU-Net predictions", version="1", docs_url=None, redoc_url=None)
    ids = documented(404, *_REFUSALS)
    results = {**documented_segmentation("The segmentation, or its record."), **ids, **documented(409, 410)}

    @app.post("/predictions", status_code=202, responses={**documented(400, 409, 413, 415, 429, 507, *_REFUSALS)}, openapi_extra=_BODY)
    async def create(request: Request, who: Annotated[Caller, caller("POST")], idempotency_key: IdempotencyKey = None) -> JSONResponse:
        """Accept a case and store it on the disk and in Airflow's database. ``Location`` in the answer is its address."""
        return await _create(request, who, idempotency_key)

    @app.get("/predictions", responses={**documented(*_REFUSALS)})
    async def listing(
        who: Annotated[Caller, caller("GET")],
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    ) -> dict[str, Any]:
        """Return the team's predictions, the newest first."""
        runs, total = await who.core.runs(who.tenant.dag_id, limit=limit, offset=offset)
        return {"predictions": [outcome.summary(run) for run in runs], "total": total}

    @app.get("/predictions/{prediction}", responses={**ids})
    async def status(prediction: RequestId, who: Annotated[Caller, caller("GET")]) -> dict[str, Any]:
        """Return the state of a prediction, with its result or the reason of its failure."""
        return await _status(who, await _run(who, prediction))

    @app.get(
        "/predictions/{prediction}/result",
        responses=results,
        response_class=Response,
    )
    async def result(request: Request, prediction: RequestId, who: Annotated[Caller, caller("GET")]) -> Response:
        """Return the segmentation, or its record with ``Accept: application/json``."""
        run = await _run(who, prediction)
        path = await asyncio.to_thread(_finished_file, who.tenant, run)
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse(await _status(who, run))
        return FileResponse(path, media_type=media_type(path.name), filename=path.name, headers={"X-Content-Type-Options": "nosniff"})

    @app.delete(
        "/predictions/{prediction}",
        status_code=202,
        response_class=Response,
        responses={204: {"description": "The prediction has ended already."}, **ids},
    )
    async def cancel(prediction: RequestId, who: Annotated[Caller, caller("PUT")]) -> Response:
        """Cancel a prediction: 202 if its run was stopped, 204 if it had ended already."""
        run = await _run(who, prediction)
        if run["state"] in ("success", "failed"):
            return Response(status_code=204)
        await who.core.fail_run(who.tenant.dag_id, prediction, note=outcome.CANCELLED)
        return Response(status_code=202)

    answer_with_problems(app)
    _answer_storage_errors(app)
    return app


# --- taking a request -------------------------------------------------------------------------------------------------
async def _create(request: Request, who: Caller, key: str | None) -> JSONResponse:
    tenant = who.tenant
    request_id = new_id(tenant, who.user, key)
    size = largest(request, tenant)
    async with contextlib.AsyncExitStack() as stack:
        async with _turn():  # from here on the upload counts
            known = await who.core.run(tenant.dag_id, request_id) if key else None
            await asyncio.to_thread(require_place, tenant, request_id, size, new=known is None)
            draft = await stack.enter_async_context(_draft(tenant, request_id, size=size, new=known is None))
        asked = await receive(request, tenant, draft)
        async with _turn():
            known = await who.core.run(tenant.dag_id, request_id) if key else None
            if known is None:
                await _queue(who, request_id, asked, draft)
            elif (known.get("conf") or {}).get("content") != draft.content:
                raise Problem(422, "Idempotency-Key: was used for another body; use a new key for a new prediction")
    where = f"{request.scope.get('root_path', '')}/predictions/{request_id}"
    return JSONResponse({"id": request_id, "status": "queued" if known is None else outcome.state_of(known)}, 202, {"Location": where})


async def _queue(who: Caller, request_id: str, asked: PredictionFields, draft: Draft) -> None:
    """Publish the request's folder, then create its run."""
    tenant = who.tenant
    target = tenant.requests / request_id
    if target.exists():  # the client or this server ended before there was a run
        await asyncio.to_thread(remove, target)
    await asyncio.to_thread(draft.publish)
    conf = {"dataset": asked.dataset, "model": asked.model, "content": draft.content}
    try:
        await who.core.create_run(tenant.dag_id, request_id, conf)
    except Problem:
        if await who.core.run(tenant.dag_id, request_id) is None:
            await asyncio.to_thread(remove, target)
            raise


@contextlib.asynccontextmanager
async def _draft(tenant: Tenant, request_id: str, *, size: int, new: bool) -> AsyncIterator[Draft]:
    draft = Draft(tenant, request_id, size=size, new=new)
    try:
        yield draft.__enter__()
    finally:
        # In this thread, because a client that disconnects cancels the handler, and nothing awaited would run.
        draft.__exit__()


@contextlib.asynccontextmanager
async def _turn() -> AsyncIterator[None]:
    """Hold the queue's lock over all processes of the API server, to count and create."""
    tenant = await asyncio.to_thread(load_tenant, None)
    folder = tenant.requests
    make_folder(tenant.workspace, folder)
    fd = open_new(folder / ".queue.lock", os.O_RDWR)
    try:
        # Not in a thread, because that could take the lock after its handler was cancelled.
        while not try_lock(fd):
            await asyncio.sleep(_LOOK_S)
        yield
    finally:
        os.close(fd)


# --- answering about one ----------------------------------------------------------------------------------------------
async def _run(who: Caller, prediction: str) -> dict[str, Any]:
    """Return the run of an id in the caller's own tenant. Ids of other teams are unknown.

    Raises:
        Problem: 404, because there is no such run.
    """
    run = await who.core.run(who.tenant.dag_id, prediction) if REQUEST_ID.fullmatch(prediction) else None
    if run is None:
        raise Problem(404, _UNKNOWN)
    return run


async def _status(who: Caller, run: dict[str, Any]) -> dict[str, Any]:
    found = outcome.summary(run)
    if found["status"] == "succeeded":
        entry = await asyncio.to_thread(outcome.entry_of, who.tenant, found["id"])
        names = ("model", "model_hash", "volumes_ml", "flags", "seconds")
        found |= {name: entry[name] for name in names if name in entry}
    elif found["status"] == "failed":
        told = await who.core.job_of(who.tenant.dag_id, found["id"], JOB_XCOM)
        found["reason"] = await asyncio.to_thread(outcome.reason, who.tenant, found["id"], told)
    return found


def _finished_file(tenant: Tenant, run: dict[str, Any]) -> Path:
    state = outcome.state_of(run)
    if state in ("queued", "running"):
        raise Problem(409, f"the prediction is {state}; ask again", retry_after_s=COME_BACK_S)
    if state in ("failed", "cancelled"):
        raise Problem(409, f"the prediction has {'failed' if state == 'failed' else 'been cancelled'}; there is no result")
    path = outcome.segmentation(tenant, run["dag_run_id"])
    if path is None:
        raise Problem(410, f"the result has been removed; results are kept for {tenant.keep_days} days")
    return path


# --- problems ---------------------------------------------------------------------------------------------------------
def _answer_storage_errors(app: FastAPI) -> None:
    @app.exception_handler(ClientDisconnect)
    async def gone(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody receives it

    @app.exception_handler(OSError)
    async def storage(_request: Request, error: OSError) -> Response:
        log.error("%s", error, exc_info=error)
        if classify(error) is FailureClass.DISK_FULL:
            return respond(Problem(507, "there is no disk space for the upload; ask the operator of this server"))
        return respond(Problem(503, "the folder of the requests cannot be used now; the API server's log says why", retry_after_s=60))
