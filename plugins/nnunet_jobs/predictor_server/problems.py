"""How this server answers with a problem document."""

from __future__ import annotations

from starlette.responses import JSONResponse

from nnunet_jobs.contract.http.problems import MEDIA_TYPE, Problem


def respond(problem: Problem) -> JSONResponse:
    """The document as a response."""
    return JSONResponse(problem.document(), status_code=problem.status, headers=problem.headers(), media_type=MEDIA_TYPE)
