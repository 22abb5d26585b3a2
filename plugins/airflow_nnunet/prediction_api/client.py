"""A small client of the prediction API that posts a case, waits for it and fetches its segmentation."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from airflow_nnunet.prediction_api import URL_PREFIX
from airflow_nnunet.prediction_api.rest_client import AirflowClient
from nnunet_jobs.contract.http.problems import MEDIA_TYPE
from nnunet_jobs.contract.http.uploads import FIELD
from nnunet_jobs.contract.storage.files import PRIVATE, replacing

_TRIES = 3
_PATH = f"{URL_PREFIX.strip('/')}/predictions"
_PASSING = (429, 502, 503, 504)
UNFINISHED = ("queued", "running")


class RequestProblem(RuntimeError):
    """The API answers with a problem, whose text is the message. If ``passing``, the same request may succeed later."""

    def __init__(self, answer: httpx.Response) -> None:
        problem = answer.json() if answer.headers.get("content-type", "").startswith(MEDIA_TYPE) else {}
        super().__init__(str(problem.get("detail") or f"the server answers {answer.status_code} {answer.reason_phrase}"))
        self.status = answer.status_code
        self.passing = answer.status_code in _PASSING
        self.retry_after_s = answer.headers.get("retry-after")


class PredictionsClient(AirflowClient):
    """Calls the prediction API of an Airflow with a user's login or a token."""

    def predict(self, images: Sequence[Path], *, dataset: str, model: str | None = None, key: str | None = None) -> str:
        """Post one case, one file for each channel, and return the prediction's id. A repeated post makes no second
        prediction.

        Raises:
            RequestProblem: The API refuses the request.
            httpx.TransportError: There is no answer after all tries.
        """
        fields = {"dataset": dataset} | ({"model": model} if model else {})
        key = key or secrets.token_hex(16)
        with contextlib.ExitStack() as stack:
            # The files' own names are not sent, because they may identify the patient.
            files = [(FIELD, (f"{channel:04d}", stack.enter_context(open(path, "rb")))) for channel, path in enumerate(images)]
            for left in reversed(range(_TRIES)):
                try:
                    answer = self.send("POST", _PATH, data=fields, files=files, headers={"Idempotency-Key": key})
                    break
                except httpx.TransportError:
                    if not left:
                        raise
        return str(self._good(answer).json()["id"])

    def status(self, prediction: str) -> dict[str, Any]:
        """Return what is known about a prediction.

        Raises:
            RequestProblem: The API refuses the request.
        """
        return dict(self._good(self.send("GET", f"{_PATH}/{prediction}")).json())

    def wait(
        self, prediction: str, *, timeout_s: float, interval_s: float = 1.0, progress: Callable[[str], None] = lambda _: None
    ) -> dict[str, Any]:
        """Ask until the prediction has ended, also while the API server restarts, and return what is known about it.

        Raises:
            RequestProblem: The API refuses the request for good.
            TimeoutError: The prediction has not ended after ``timeout_s`` seconds.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                found = self.status(prediction)
                progress(found["status"])
                if found["status"] not in UNFINISHED:
                    return found
            except (httpx.TransportError, RequestProblem) as error:
                if isinstance(error, RequestProblem) and not error.passing:
                    raise
            if time.monotonic() > end:
                raise TimeoutError(f"{prediction} has not ended in {timeout_s:.0f} s; it continues")
            time.sleep(interval_s)

    def save_result(self, prediction: str, path: Path) -> None:
        """Write the segmentation to a file, which never exists in part.

        Raises:
            RequestProblem: The API refuses the request.
        """
        answer = self._good(self.send("GET", f"{_PATH}/{prediction}/result"))
        with replacing(path, mode=PRIVATE) as file:
            file.write(answer.content)

    @staticmethod
    def _good(answer: httpx.Response) -> httpx.Response:
        if answer.status_code >= 400:
            raise RequestProblem(answer)
        return answer
