"""How an archive is spoken to: one authenticated session a thread, bounded retries, and errors sorted by what a retry may hope for.

Imported when the first request is made: it brings dicomweb-client, pydicom and NumPy.
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
# The codes that say "not now"; all other errors of the 400s say "never like this".
_PASSING = (408, 425, 429)
_LONGEST_WAIT_S = 30.0
_BACKOFF = wait_exponential(multiplier=0.5, max=_LONGEST_WAIT_S) + wait_random(0, 1)


class _Bearer(AuthBase):
    """A token as the session's own authentication: a plain header would give way to an entry in ~/.netrc."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Session(requests.Session):
    """Keeps to the connection's CA bundle; requests would let $REQUESTS_CA_BUNDLE override it."""

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        settings = dict(super().merge_environment_settings(url, proxies, stream, verify, cert))
        if isinstance(self.verify, str):
            settings["verify"] = self.verify
        return settings


class Transport:
    """Runs requests against one archive, in any number of threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._local = threading.local()
        if endpoint.in_the_clear:
            log.warning("connection %r sends its credentials over plain http; set schema to https", endpoint.conn_id)

    @property
    def client(self) -> Any:
        """This thread's DICOMwebClient: a requests session is not safe to share."""
        if not hasattr(self._local, "client"):
            self._local.client = self._make_client()
        return self._local.client

    def call(self, what: str, request: Callable[[Any], T]) -> T:
        """Run a request, again after a wait where that may help.

        Args:
            what: What the request is for, in words that name no patient.
            request: Gets the client. Must be safe to repeat.

        Raises:
            ArchiveUnavailable: No answer, or an answer of the 500s, after all tries.
            ArchiveRefused: Credentials, address, certificate or rights are wrong.
        """
        tries = Retrying(
            stop=stop_after_attempt(self.endpoint.tries),
            wait=_wait,
            retry=retry_if_exception_type(ArchiveUnavailable),
            before_sleep=lambda state: log.info("%s: try %s failed, going on in %.1f s", what, state.attempt_number, state.upcoming_sleep),
            reraise=True,
        )
        result: T = tries(self._once, what, request)
        return result

    def _once(self, what: str, request: Callable[[Any], T]) -> T:
        try:
            return request(self.client)
        # The cause is cut off: its text holds URLs, and for a broken file whatever the file held.
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
                "holds its authority"
            )
        passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
        if isinstance(error, passing) and not isinstance(error, requests.exceptions.InvalidURL):
            return ArchiveUnavailable(f"lost: {where}: no answer from {self.endpoint.url} ({type(error).__name__}); is the archive up?")
        if isinstance(error, requests.exceptions.JSONDecodeError):
            return ArchiveRefused(f"config: {where}: the answer is not DICOM JSON; check base_path, {self.endpoint.url} is no QIDO service")
        return ArchiveRefused(f"config: {where}: {type(error).__name__}; check host, port and base_path")

    def _explain_status(self, response: requests.Response, where: str) -> ArchiveRefused | ArchiveUnavailable:
        code = response.status_code
        if code >= 500 or code in _PASSING:
            unavailable = ArchiveUnavailable(f"lost: {where}: the archive answers {code} ({response.reason})")
            unavailable.retry_after_s = _seconds(response.headers.get("Retry-After"))
            return unavailable
        fix = {
            401: "it does not accept the credentials; check login and password, or token",
            403: "the user has no right to do this; have it granted in the archive",
            404: f"there is no such thing below {self.endpoint.url}; check base_path and the prefixes",
            413: "it matches more than the archive answers; narrow it by date, modality or description"
            if response.request.method == "GET"
            else "the request is too large for the archive; raise its limit or send smaller files",
        }.get(code, "the archive does not take this request; check base_path and the prefixes")
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
            permissive_uid=True,  # hospitals have UIDs with leading zeros; what goes into URLs is checked before
            timeout=endpoint.timeout_s,
        )
        client.set_http_retry_params(retry=False)  # its waits have no jitter and no ceiling, and a lost connection is not retried
        return client


def _comes_from(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an error of that kind is behind another one. requests and urllib3 wrap each other's."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, kind):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def _whole(response: requests.Response, *args: Any, **kwargs: Any) -> None:
    """Refuse a multipart answer that ends before its closing boundary: a proxy may cut one without any error."""
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
    """pydicom, which dicomweb-client brings. Only this room has it; by name, so that the wing's static contract stays exact.

    What it and dicomweb-client print stays out of task logs: request lines hold UIDs, warnings about odd values quote the values.
    """
    module = importlib.import_module("pydicom")
    for name in ("dicomweb_client", "pydicom"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\b")
    module.config.settings.reading_validation_mode = module.config.IGNORE
    return module
