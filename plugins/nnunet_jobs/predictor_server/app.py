"""Defines the routes of a predictor server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import ConfigError, DataError, FailureClass, JobError
from nnunet_jobs.contract.http.problem_responses import answer_with_problems, respond
from nnunet_jobs.contract.http.problems import Problem, documented
from nnunet_jobs.contract.http.uploads import FIELD, FILES, documented_body, documented_segmentation, media_type
from nnunet_jobs.prediction.export import label_values
from nnunet_jobs.prediction.predictor import Predictor
from nnunet_jobs.prediction.work import CaseWork, Record
from nnunet_jobs.predictor_server.background_tasks import BackgroundTask
from nnunet_jobs.predictor_server.engine import Busy, InferenceEngine
from nnunet_jobs.predictor_server.metrics import Metrics
from nnunet_jobs.predictor_server.models import NoRoom, WarmModels, served_datasets
from nnunet_jobs.predictor_server.settings import ServeSettings
from nnunet_jobs.predictor_server.uploads import receive
from nnunet_jobs.predictor_server.visitors import KnownVisitors

log = logging.getLogger("nnunet_jobs")

_REFRESH_S = 2.0
_COME_BACK_S = 10
_FORM = documented_body(form={"required": [FIELD], "properties": {FIELD: FILES}})
Dataset = Annotated[str, Path(description="Id or full name of a dataset, such as 4 or Dataset004_Hippocampus.", max_length=120)]
Model = Annotated[str | None, Query(description="Model id; the promoted model if not given.", max_length=100)]
Inline = Annotated[bool, Query(description="Answer with JSON that holds the segmentation's file too, in base64.")]


class Server:
    """Holds what the routes share. ``draining``: running requests are finished, new connections are refused."""

    def __init__(self, settings: ServeSettings, models: WarmModels) -> None:
        self.settings = settings
        self.models = models
        self.metrics = Metrics()
        self.engine = InferenceEngine(limit=settings.waiting, metrics=self.metrics)
        self.draining = False
        self.background_tasks = (
            BackgroundTask("load the models", self._load, every_s=_REFRESH_S, once=True),
            BackgroundTask("follow promotions", self._follow, every_s=_REFRESH_S, problems=lambda: self.models.problems),
        )

    @property
    def ready(self) -> bool:
        """Whether the models are in memory that must be before the first request."""
        return self.background_tasks[0].done

    async def _load(self) -> None:
        """Load the models that must be in memory before the server is ready."""
        for dataset in self.settings.datasets or await asyncio.to_thread(served_datasets, self.models.workspace):
            await asyncio.to_thread(self.models.get, dataset)
        for dataset, model in self.settings.models:
            await asyncio.to_thread(self.models.get, dataset, model)

    async def _follow(self) -> None:
        await asyncio.to_thread(self.models.refresh)

    async def predictor(self, dataset: str, model: str | None) -> Predictor:
        """Return the predictor of a request.

        Raises:
            Problem: 404, or 503 where its files are damaged or there is no room for it.
        """
        try:
            return await asyncio.to_thread(self.models.get, dataset, model)
        except (ConfigError, FileNotFoundError) as error:
            log.info("not served: %s", error)  # the full text names the server's folders and its other datasets
            raise Problem(404, "no such dataset or model is served here; GET /v1/models lists what is in memory") from error
        except NoRoom as error:
            raise Problem(503, str(error)) from error
        except DataError as error:
            log.error("%s", error)
            raise Problem(503, "the model's files are damaged; the server's log names them", retry_after_s=_COME_BACK_S) from error

    async def answer(self, request: Request, dataset: str, model: str | None, *, inline: bool = False) -> Response:
        """Answer a request with its segmentation; ``inline``: in JSON, with its volumes."""
        predictor = await self.predictor(dataset, model)
        folder = self.settings.scratch / uuid.uuid4().hex
        async with self.engine.admitted(folder) as admission:
            async with asyncio.timeout(self.settings.timeout_s):
                case = await receive(
                    request,
                    folder,
                    file_ending=predictor.file_ending,
                    channels=predictor.channels,
                    limit_mib=self.settings.upload_mib,
                )
                work = CaseWork(case=case)
                record = await _unless_gone(request, self.engine.predict(work, predictor, admission))
            if record["status"] != "predicted":
                of_data = record["failure_class"] == FailureClass.DATA
                raise Problem(422 if of_data else 500, str(record["reason"]))
            file = folder / "output" / record["file"]
            described = _described(record, dataset=predictor.model.dataset, file_ending=predictor.file_ending)
            if not inline and "application/json" in request.headers.get("accept", ""):
                return JSONResponse(described)
            content = await asyncio.to_thread(file.read_bytes)
        if inline:
            return JSONResponse({**described, "segmentation": base64.b64encode(content).decode()})
        return Response(
            content,
            media_type=media_type(record["file"]),
            headers={
                "Content-Disposition": f'attachment; filename="segmentation{predictor.file_ending}"',
                "X-Nnunet-Model": record["model"],
                "X-Nnunet-Model-Hash": record["model_hash"],
                "X-Nnunet-Seconds": str(record["seconds"]),
            },
        )


def create_app(server: Server) -> FastAPI:
    """The application; loading and following promotions begin when it starts."""

    @contextlib.asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(task.run()) for task in server.background_tasks]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(server.engine.close)

    app = FastAPI(title="nnU-Net predictor", version="1", lifespan=life, docs_url=None, redoc_url=None)
    told = server.settings
    app.add_middleware(KnownVisitors, names=told.names, allowed=told.allow_hosts, without_dots=told.uds is not None)

    @app.post("/v1/models/{dataset}/predict", responses=_answers(), openapi_extra=_FORM, response_class=Response)
    async def predict(request: Request, dataset: Dataset, model: Model = None, inline: Inline = False) -> Response:
        """Segment one case. ``Accept: application/json`` answers with volumes instead of the segmentation, ``inline`` with both."""
        begun = time.monotonic()
        response = await _guarded(server.answer(request, dataset, model, inline=inline))
        server.metrics.requests.labels(str(response.status_code)).inc()
        server.metrics.seconds.observe(time.monotonic() - begun)
        return response

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the models in memory, and which one answers for each dataset."""
        warm = [{"dataset": name, "model": model, "bytes": size} for (name, model), size in server.models.warm().items()]
        return {"warm": warm, "current": server.models.current()}

    @app.get("/v1/models/{dataset}", responses={**documented(404, 422, 503)})
    async def describe(dataset: Dataset, model: Model = None) -> dict[str, Any]:
        """Describe a model's input and output."""
        predictor = await server.predictor(dataset, model)
        return {
            "dataset": predictor.model.dataset,
            "model": predictor.model.model,
            "model_hash": predictor.model.hash,
            "channels": predictor.channel_names,
            "file_ending": predictor.file_ending,
            "labels": {name: list(values) for name, values in label_values(predictor.dataset_json).items()},
        }

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Return 200 while the process works."""
        return "ok\n"

    @app.get("/readyz", response_class=PlainTextResponse, responses={503: {"description": "Loading, or about to end."}})
    async def readyz() -> Response:
        """Return 200 once the models are in memory, and until the server begins to stop. Further lines say which background tasks fail."""
        good = server.ready and not server.draining and all(task.alive for task in server.background_tasks)
        word = "ready" if good else "draining" if server.draining else "loading" if not server.ready else "a background task has ended"
        lines = [word, *(line for task in server.background_tasks for line in task.words())]
        return PlainTextResponse("".join(f"{line}\n" for line in lines), status_code=200 if good else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the figures in the text form of Prometheus."""
        text = server.metrics.text(server.models.warm(), server.models.loads)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    answer_with_problems(app)
    return app


async def _unless_gone(request: Request, work: Any) -> Record:
    """Return the record; if the client disconnects first, the work is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        record: Record = task.result()
        return record
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _guarded(answer: Any) -> Response:
    """Return the answer, or the problem that it ended with."""
    try:
        response: Response = await answer
        return response
    except Problem as problem:
        return respond(problem)
    except Busy as busy:
        return respond(Problem(503, str(busy), retry_after_s=busy.retry_after_s))
    except TimeoutError:
        return respond(Problem(504, "the prediction takes longer than the server allows; use the batch or raise --timeout-s"))
    except ClientDisconnect:
        return Response(status_code=499)  # not received by the client; for the metrics
    except MemoryError as error:
        return respond(Problem(413, f"the image is too large for this server: {error}"))
    except Exception as error:
        kind = classify(error)
        log.error("a prediction failed: %s: %s", kind, error, exc_info=not isinstance(error, JobError))
        if kind is FailureClass.BUG:
            return respond(Problem(500, "an unexpected error; the server's log has its details"))
        return respond(Problem(503, f"{kind}: the server cannot predict now", retry_after_s=_COME_BACK_S))


def _described(record: Record, *, dataset: str, file_ending: str) -> dict[str, Any]:
    names = ("model", "model_hash", "volumes_ml", "flags", "seconds")
    known: dict[str, Any] = {name: record[name] for name in names if name in record}
    return {"dataset": dataset, **known, "file_ending": file_ending, "sha256": record["files"][record["file"]]}


def _answers() -> dict[int | str, dict[str, Any]]:
    return {**documented_segmentation("The segmentation, or its volumes in ml."), **documented()}
