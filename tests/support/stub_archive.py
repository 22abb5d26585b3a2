"""A DICOMweb archive on loopback that answers from a table: for many studies, and for pages as no real archive here cuts them."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_PATH = re.compile(
    r"/dicom-web/studies(?:/(?P<study>[0-9.]+)/series)?(?:/(?P<series>[0-9.]+)/(?P<last>instances|metadata))?(?:/(?P<sop>[0-9.]+))?"
)


@dataclass(kw_only=True)
class StubArchive:
    """Studies of MR series, one each where nothing else is said. Use it as a context manager.

    Attributes:
        studies: UID to number of instances.
        counts: Whether answers tell numbers of series and instances.
        cap: Most items of one answer.
        offsets: Whether ``offset`` counts.
        files: Bytes of instances by SOPInstanceUID.
        listed: Number of instances of a series that a query can find at all, when that is fewer than it counts.
        listed_series: Number of series of a study that a query can find at all, when that is fewer than it counts.
        series: UID to the number of its series, all of them of the same instances, where it has more than one.
        meant: UID to the instances of its MR series where the study has more, such as segmentations.
        dates: UID to study date; all of them have ``20240110`` otherwise, and a query's dates are only looked at where
            there are some.
        metadata: Whether the metadata of a series can be retrieved.
        asked: Paths of all requests.
    """

    studies: dict[str, int] = field(default_factory=dict)
    counts: bool = True
    cap: int = 10_000
    offsets: bool = True
    files: dict[str, bytes] = field(default_factory=dict)
    listed: int | None = None
    listed_series: int | None = None
    series: dict[str, int] = field(default_factory=dict)
    meant: dict[str, int] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)
    metadata: bool = True
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> StubArchive:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def connection(self) -> str:
        """As AIRFLOW_CONN_... takes it."""
        port = self._server.server_address[1]
        return json.dumps({"conn_type": "dicomweb", "host": "127.0.0.1", "port": port, "schema": "http", "extra": {"tries": 1}})

    def answer(self, path: str, query: dict[str, str]) -> list[dict[str, Any]] | bytes | None:
        """The items of a query, the bytes of an instance, or None for what is not there."""
        self.asked.append(path)
        found = _PATH.fullmatch(path)
        if found is None:
            return None
        if found["sop"]:
            return self.files.get(found["sop"])
        if found["last"] == "metadata":
            return [self._instance(found["study"], n) for n in range(self.studies[found["study"]])] if self.metadata else None
        items = self._items(found, query)
        first = int(query.get("offset", 0)) if self.offsets else 0
        return items[first : first + min(self.cap, int(query.get("limit", 10_000)))]

    def _items(self, found: re.Match[str], query: dict[str, str]) -> list[dict[str, Any]]:
        if found["series"]:
            return [self._instance(found["study"], n) for n in range(self.listed or self.studies[found["study"]])]
        if found["study"]:
            number = self.meant.get(found["study"], self.studies[found["study"]])
            return [
                _item(("0020000E", f"{found['study']}.{n + 1}"), ("00080060", "MR"), *self._told("00201209", number))
                for n in range(self.listed_series or self.series.get(found["study"], 1))
            ]
        first, _, last = query.get("StudyDate", "0-9").partition("-")
        chosen = {uid: self.dates.get(uid, "20240110") for uid in self.studies if query.get("StudyInstanceUID", uid) == uid}
        return [
            _item(
                ("0020000D", uid),
                ("00080020", date),
                ("00080061", "MR"),
                *self._told("00201206", self.series.get(uid, 1)),
                *self._told("00201208", self.studies[uid]),
            )
            for uid, date in chosen.items()
            if not self.dates or (first <= date <= (last or first))
        ]

    def _instance(self, study: str, number: int) -> dict[str, Any]:
        known = sorted(uid for uid in self.files if uid.startswith(f"{study}."))
        return _item(("00080018", known[number] if number < len(known) else f"{study}.1.{number + 1}"))

    def _told(self, tag: str, number: int) -> list[tuple[str, str]]:
        return [(tag, str(number))] if self.counts else []


def _item(*values: tuple[str, str]) -> dict[str, Any]:
    return {tag: {"vr": "UI", "Value": [value]} for tag, value in values}


def _handler(archive: StubArchive) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet an answer: a second one would wait 40 ms for the first one's acknowledgement

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            found = archive.answer(url.path, {name: values[-1] for name, values in parse_qs(url.query).items()})
            kind, body = "application/dicom+json", json.dumps(found).encode() if isinstance(found, list) else b""
            if isinstance(found, bytes):
                kind = 'multipart/related; type="application/dicom"; boundary=b'
                body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + found + b"\r\n--b--\r\n"
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
