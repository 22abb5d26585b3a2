"""How both REST services answer with a problem document. Needs FastAPI, which both of them have."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from nnunet_jobs.contract.http.problems import MEDIA_TYPE, Problem, in_words


def respond(problem: Problem) -> JSONResponse:
    """The document as a response."""
    return JSONResponse(problem.document(), status_code=problem.status, headers=problem.headers(), media_type=MEDIA_TYPE)


def answer_with_problems(app: FastAPI) -> None:
    """Answer with a problem document where a route raises a :class:`Problem`, and to whatever FastAPI itself refuses."""

    @app.exception_handler(Problem)
    async def problem(_request: Request, error: Problem) -> Response:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return respond(Problem(422, in_words(error.errors())))

    @app.exception_handler(HTTPException)
    async def refused(_request: Request, error: HTTPException) -> Response:
        response = respond(Problem(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response
