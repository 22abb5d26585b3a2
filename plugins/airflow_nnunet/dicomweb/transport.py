"""Sends requests to an archive: one authenticated session a thread, limited retries, and errors by whether a retry may
help.

This module is imported with the first request, because it needs dicomweb-client, pydicom and NumPy.
"""

from __future__ import annotations

import importlib
import logging
import ssl
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import requests
from requests.auth import AuthBase, HTTPBasicAuth
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

from airflow_nnunet.dicomweb.endpoint import Endpoint
from airflow_nnunet.jobs.exceptions import ArchiveRefused, ArchiveUnavailable, InvalidConfig

log = logging.getLogger(__name__)
T = TypeVar("T")
# These codes mean "not now". With all other 4xx codes the same request will never succeed.
_PASSING = (408, 425, 429)
_LONGEST_WAIT_S = 30.0
_BACKOFF = wait_exponential(multiplier=0.5, max=_LONGEST_WAIT_S) + wait_random(0, 1)


class _Bearer(AuthBase):
    """Sends a token as the session's authentication, because an entry in ~/.netrc would override a plain header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Session(requests.Session):
    """Uses the connection's CA bundle, because requests would let $REQUESTS_CA_BUNDLE override it."""

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        settings = dict(super().merge_environment_settings(url, proxies, stream, verify, cert))
        if isinstance(self.verify, str):
            settings["verify"] = self.verify
        return settings


class Transport:
    """Sends requests to one archive from any number of threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._local = threading.local()
        if endpoint.in_the_clear:
            log.warning("connection %r sends its credentials over plain http; set schema to https", endpoint.conn_id)

    @property
    def client(self) -> Any:
        """Return this thread's DICOMwebClient, because a session of requests must not be shared."""
        if not hasattr(self._local, "client"):
            self._local.client = self._make_client()
        return self._local.client

    def call(self, what: str, request: Callable[[Any], T]) -> T:
        """Send a request, and repeat it after a wait if that may help.

        Args:
            what: Purpose of the request, without anything that identifies a patient.
            request: Function that gets the client. It must be safe to repeat.

        Raises:
            ArchiveUnavailable: All tries end without an answer or with a 5xx code.
            ArchiveRefused: Credentials, address, certificate or rights are wrong.
        """
        tries = Retrying(
            stop=stop_after_attempt(self.endpoint.tries),
            wait=_wait,
            retry=retry_if_exception_type(ArchiveUnavailable),
            before_sleep=lambda state: log.info(
                "%s: try %s failed, trying again in %.1f s", what, state.attempt_number, state.upcoming_sleep
            ),
            reraise=True,
        )
        result: T = tries(self._once, what, request)
        return result

    def _once(self, what: str, request: Callable[[Any], T]) -> T:
        try:
            return request(self.client)
        # The cause is dropped, because its text contains URLs and may quote a broken file.
        except requests.RequestException as error:
            raise self._explain(error, what) from None

    def _explain(self, error: requests.RequestException, what: str) -> ArchiveRefused | ArchiveUnavailable:
        where = f"connection {self.endpoint.conn_id!r}: {what}"
        response = error.response
        if response is not None and not response.ok:
            return self._explain_status(response, where)
        if _comes_from(error, ssl.SSLCertVerificationError):
            return ArchiveRefused(
                f"config: {where}: the server's certificate is not trusted; set verify in the connection's extra to a CA bundle that "
                "contains its authority"
            )
        passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
        if isinstance(error, passing) and not isinstance(error, requests.exceptions.InvalidURL):
            return ArchiveUnavailable(f"lost: {where}: no answer from {self.endpoint.url} ({type(error).__name__}); is the archive up?")
        if isinstance(error, requests.exceptions.JSONDecodeError):
            return ArchiveRefused(
                f"config: {where}: the answer is not DICOM JSON; check base_path, {self.endpoint.url} is not a QIDO service"
            )
        return ArchiveRefused(f"config: {where}: {type(error).__name__}; check host, port and base_path")

    def _explain_status(self, response: requests.Response, where: str) -> ArchiveRefused | ArchiveUnavailable:
        code = response.status_code
        if code >= 500 or code in _PASSING:
            unavailable = ArchiveUnavailable(f"lost: {where}: the archive answers {code} ({response.reason})")
            unavailable.retry_after_s = _seconds(response.headers.get("Retry-After"))
            return unavailable
        fix = {
            401: "it does not accept the credentials; check login and password, or token",
            403: "the user may not do this; have the right granted in the archive",
            404: f"it is not found below {self.endpoint.url}; check base_path and the prefixes",
            413: "it matches more than the archive returns; narrow it by date, modality or description"
            if response.request.method == "GET"
            else "the request is too large for the archive; raise its limit or send smaller files",
        }.get(code, "the archive does not accept this request; check base_path and the prefixes")
        refused = ArchiveRefused(f"config: {where}: the archive answers {code}: {fix}")
        refused.status = code
        return refused

    def _make_client(self) -> Any:
        try:
            from dicomweb_client.api import DICOMwebClient
        except ModuleNotFoundError as error:
            raise InvalidConfig(f"config: {error}; pip install 'airflow-provider-nnunet[dicomweb]' on the workers") from error

        endpoint = self.endpoint
        pydicom()
        session = _Session()
        session.verify = endpoint.verify
        if endpoint.token:
            session.auth = _Bearer(endpoint.token)
        elif endpoint.login:
            session.auth = HTTPBasicAuth(endpoint.login, endpoint.password or "")
        client = DICOMwebClient(
            endpoint.url,
            session=session,
            qido_url_prefix=endpoint.qido_prefix,
            wado_url_prefix=endpoint.wado_prefix,
            stow_url_prefix=endpoint.stow_prefix,
            callback=_whole,
            permissive_uid=True,  # some hospitals have UIDs with leading zeros; UIDs are checked before they go into URLs
            timeout=endpoint.timeout_s,
        )
        # The client's own retries have no jitter and no longest wait, and do not cover lost connections.
        client.set_http_retry_params(retry=False)
        return client


def _comes_from(error: BaseException, kind: type[BaseException]) -> bool:
    """Return whether an error of that class is among an error's causes, as requests and urllib3 wrap errors."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, kind):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def _whole(response: requests.Response, *args: Any, **kwargs: Any) -> None:
    """Refuse a multipart answer that ends before its closing boundary: a proxy may cut it off without an error."""
    multipart = response.ok and response.headers.get("Content-Type", "").lower().startswith("multipart/related")
    if multipart and not response.content.rstrip(b"\r\n").endswith(b"--"):
        raise requests.exceptions.ChunkedEncodingError("the answer ends early", response=response)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, ArchiveUnavailable) else 0.0
    return max(float(_BACKOFF(state)), min(asked, _LONGEST_WAIT_S))


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isascii() and text.isdigit() else 0.0


def pydicom() -> Any:
    """Import pydicom, which dicomweb-client needs. It is imported by name, because import-linter bans it in this
    package.

    Messages of both libraries are kept out of task logs, because request lines contain UIDs and warnings quote values.
    """
    module = importlib.import_module("pydicom")
    for name in ("dicomweb_client", "pydicom"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\b")
    module.config.settings.reading_validation_mode = module.config.IGNORE
    return module
