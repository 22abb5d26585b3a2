"""Writes the files of a form into the request's folder while they are received.

Starlette's own reader would first keep files below TMPDIR, which is often in memory in a container.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from nnunet_jobs.contract.http.problems import Problem
from nnunet_jobs.contract.http.uploads import FIELD, MOST_FILES

_TEXT_BYTES = 1024  # limit of one field, more than any field needs
_FIELDS = 8


async def read_form(request: Request, folder: Path) -> tuple[dict[str, str], list[Path]]:
    """Read a request's form.

    Args:
        request: Request whose ``receive`` limits the size.
        folder: Folder for the files, which are named ``0.part``, ``1.part`` and so on.

    Returns:
        The fields, and the complete files in the order of the form.

    Raises:
        Problem: 422, because the body is not a form or the form has wrong fields.
    """
    _, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise Problem(422, "the form cannot be read: its content type names no boundary")
    form = _Form(folder)
    try:
        parser = form.parser(boundary)
        async for chunk in request.stream():
            await asyncio.to_thread(parser.write, chunk)
    except FormParserError as error:
        raise Problem(422, "the form cannot be read: it is not multipart/form-data") from error
    finally:
        form.close()
    if not form.ended:
        raise Problem(422, "the form cannot be read: it ends too early")
    return form.fields, form.files


class _Form:
    """Receives the parser's calls for one form."""

    def __init__(self, folder: Path) -> None:
        self.fields: dict[str, str] = {}
        self.files: list[Path] = []
        self.ended = False
        self._folder = folder
        self._header, self._value, self._disposition = b"", b"", b""
        self._name = ""
        self._text = b""
        self._file: BinaryIO | None = None

    def parser(self, boundary: bytes) -> MultipartParser:
        """Return a parser that calls this form."""
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._part,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._all,
            },
        )

    def close(self) -> None:
        """Close the file that is being written, if there is one."""
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        self._header, self._value, self._disposition, self._text = b"", b"", b"", b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _part(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = _decoded(options.get(b"name", b""))
        if b"filename" in options:
            if self._name != FIELD:
                raise Problem(422, f"files go into the field '{FIELD}'")
            if len(self.files) == MOST_FILES:
                raise Problem(422, f"{FIELD}: has more than {MOST_FILES} files")
            self._file = open(self._folder / f"{len(self.files)}.part", "xb")  # noqa: SIM115  (closed when the parser reaches its end)
        elif self._name in self.fields or len(self.fields) == _FIELDS:
            raise Problem(422, f"{self._name[:100]}: is given more than once, or is one field too many")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _TEXT_BYTES:
            raise Problem(422, f"{self._name[:100]}: is longer than {_TEXT_BYTES} bytes")

    def _end(self) -> None:
        if self._file is None:
            self.fields[self._name] = _decoded(self._text)
            return
        self._file.close()
        self.files.append(Path(self._file.name))
        self._file = None

    def _all(self) -> None:
        self.ended = True


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise Problem(422, "the form cannot be read: its fields are not UTF-8") from error
