"""Reads a connection of type ``dicomweb`` and checks address, paths, credentials and trust before anything is sent."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from airflow_nnunet.provider_info import DICOMWEB_FIELDS
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.http.loopback import is_loopback
from nnunet_jobs.contract.storage.files import content_hash

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_PATH = re.compile(r"[A-Za-z0-9._~%-]+(?:/[A-Za-z0-9._~%-]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Describes how to reach an archive. Its printed form has no credentials.

    Attributes:
        conn_id: Id of the connection, which every error names.
        url: Base address without a trailing slash, such as ``https://pacs.example/dicom-web``.
        qido_prefix: Path of the query service below ``base_path``, where the archive has one.
        wado_prefix: Path of the retrieval service below ``base_path``, where the archive has one.
        stow_prefix: Path of the storage service below ``base_path``, where the archive has one.
        login: User name for HTTP basic authentication.
        password: Password for HTTP basic authentication.
        token: Bearer token to use instead of user name and password.
        verify: True checks the server's certificate with the system's certificate authorities; a path names another CA
            bundle.
        timeout_s: Seconds to wait for a connection, and for the next bytes of an answer.
        tries: Number of requests before giving up.
    """

    conn_id: str
    url: str
    qido_prefix: str | None = None
    wado_prefix: str | None = None
    stow_prefix: str | None = None
    login: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    verify: bool | str = True
    timeout_s: float = 60.0
    tries: int = 5

    @classmethod
    def from_connection(cls, connection: Any) -> Self:
        """Read an Airflow connection.

        Raises:
            ConfigError: A field is missing or wrong; the message names connection, field and fix, never a credential.
        """
        conn_id = str(connection.conn_id)
        try:
            extra = _extra(connection.extra)
            return cls(
                conn_id=conn_id,
                url=_url(connection, extra.get("base_path")),
                **{name: _path(name, extra.get(name)) for name in ("qido_prefix", "wado_prefix", "stow_prefix")},
                **_credentials(connection, extra.get("token")),
                verify=_verify(extra.get("verify")),
                timeout_s=_number("timeout_s", extra.get("timeout_s", 60.0), lowest=0.1),
                tries=int(_number("tries", extra.get("tries", 5), lowest=1)),
            )
        except ConfigError as error:
            raise error.told(where=f"connection {conn_id!r}:") from error

    @property
    def key(self) -> str:
        """Return a short name of the archive for files that record what it was sent. It contains no credential."""
        return content_hash([self.url, self.stow_prefix])

    @property
    def in_the_clear(self) -> bool:
        """Return whether credentials would cross a network unencrypted."""
        url = urlsplit(self.url)
        return url.scheme == "http" and bool(self.password or self.token) and not is_loopback(url.hostname or "")


def _extra(text: str | None) -> dict[str, Any]:
    try:
        data = json.loads(text) if text else {}
    except ValueError:
        data = None  # the text may contain a token, so it is not shown
    if not isinstance(data, dict):
        raise ConfigError(
            field="extra",
            problem="must be a JSON object",
            fix=f"known fields: {', '.join(DICOMWEB_FIELDS)}",
        )
    values = {name: value for name, value in data.items() if value is not None and value != ""}  # blank fields of the form
    for name in values:
        if name not in DICOMWEB_FIELDS:
            near = difflib.get_close_matches(name, DICOMWEB_FIELDS, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(DICOMWEB_FIELDS)}"
            raise ConfigError(f"extra has the unknown field {name!r}; {fix}")
    return values


def _url(connection: Any, base_path: Any) -> str:
    scheme = (connection.schema or "https").lower()
    if scheme not in ("http", "https"):
        raise ConfigError(field="schema", value=scheme, problem="must be https or http")
    host = connection.host or ""
    if not _HOST.fullmatch(host):
        raise ConfigError(
            field="host",
            value=host,
            problem="must be a bare host name such as pacs.example",
            fix="put http or https into schema and the path into base_path",
        )
    port = f":{int(connection.port)}" if connection.port else ""
    path = _path("base_path", "dicom-web" if base_path is None else base_path, empty=True)
    return f"{scheme}://{host}{port}" + (f"/{path}" if path else "")


def _path(name: str, value: Any, *, empty: bool = False) -> str | None:
    text = str(value).strip("/") if value is not None else ""
    if not text and (value is None or empty):
        return None
    if not _PATH.fullmatch(text) or ".." in text.split("/"):
        raise ConfigError(field=name, value=value, problem="must be a plain URL path such as dicom-web")
    return text


def _credentials(connection: Any, token: Any) -> Mapping[str, Any]:
    if token is not None and (not isinstance(token, str) or not token.isprintable() or not token.isascii()):
        raise ConfigError(field="token", problem="must be a printable ASCII string")
    if token and connection.login:
        raise ConfigError("has a login and a token; keep the one that the archive expects")
    return {"login": connection.login or None, "password": connection.password or None, "token": token}


def _verify(value: Any) -> bool | str:
    """Return True or a CA bundle. Certificates are always checked, as an option to skip this would be left on."""
    if value is None or value is True or (isinstance(value, str) and value.lower() == "true"):
        return True
    if isinstance(value, str) and os.path.isabs(value):
        if not os.path.exists(value):
            raise ConfigError(
                field="verify",
                value=value,
                problem="no such file on this host",
                fix="name a CA bundle in PEM form",
            )
        return value
    raise ConfigError(
        field="verify",
        value=value,
        problem="must be true or the absolute path of a CA bundle. Checking certificates cannot be turned off",
        fix="for a self-signed archive, save its certificate to a file and name that file here",
    )


def _number(name: str, value: Any, *, lowest: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= lowest):
        raise ConfigError(field=name, value=value, problem=f"must be a number of {lowest:g} or more")
    return number
