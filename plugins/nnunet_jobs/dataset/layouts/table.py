"""Reads tables that people make by hand or with a spreadsheet program, with limits on size; each fault has its line."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.storage.files import open_regular
from nnunet_jobs.faults.codes import Code

_MAX_BYTES = 64 << 20
_MAX_ROWS = 1_000_000
_MAX_CELL = 4096  # characters; longer than any path


@dataclass(slots=True, kw_only=True)
class Table:
    """A CSV file as read: the rows that are whole, each with its line number, and what is wrong with the others.

    Attributes:
        name: Name of the file, relative to the source.
        columns: Columns of the header line, in lower case and stripped.
    """

    name: str
    columns: tuple[str, ...] = ()
    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def fault(self, message: str, *, line: int | None = None, case: str | None = None, code: Code = Code.MAPPING_INVALID) -> None:
        """Record what is wrong, with its line."""
        where = f"line {line}: " if line is not None else ""
        self.faults.append(Fault(code=code, case=case, file=self.name, message=where + message))


def read_table(path: Path, name: str, *, delimiters: str = ",;\t") -> Table:
    """Read a CSV file that somebody made by hand or with a spreadsheet program. Never raises for its content.

    The delimiter is the one of ``delimiters`` that occurs most often in the header line. The limits are 64 MiB, a million rows
    and 4096 characters a cell.

    Args:
        path: The file.
        name: Name of the file in messages.
        delimiters: Delimiters to choose from.
    """
    table = Table(name=name)
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        table.fault(f"cannot be read: {error.strerror or error}")
        return table
    if len(data) > _MAX_BYTES:
        table.fault(f"is larger than {_MAX_BYTES >> 20} MiB, which no table of cases is; name the right file")
        return table
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        table.fault("is not UTF-8; save the table as 'CSV UTF-8'", line=line)
        return table
    if "\0" in text:
        table.fault("holds NUL characters; save the table as 'CSV UTF-8'")
        return table
    first = text.partition("\n")[0]
    delimiter = max(delimiters, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        _fill(table, reader)
    except csv.Error as error:
        table.fault(f"is not readable as CSV ({error}); check the quotes", line=reader.line_num)
    return table


def _fill(table: Table, reader: Any) -> None:
    head: list[str] = next(reader, [])
    table.columns = tuple(cell.strip().casefold() for cell in head)
    twice = sorted({column for column in table.columns if column and table.columns.count(column) > 1})
    if twice:
        table.fault(f"has the column{'s' if len(twice) > 1 else ''} {', '.join(map(repr, twice))} twice; keep one", line=1)
    line = reader.line_num
    for cells in reader:
        start, line = line + 1, reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(head):
            table.fault(
                f"has {len(cells)} cells where the header line has {len(head)}; put cells that hold the delimiter in quotes", line=start
            )
        elif any(len(cell) > _MAX_CELL for cell in cells):
            table.fault(f"has a cell of more than {_MAX_CELL} characters", line=start)
        elif len(table.rows) >= _MAX_ROWS:
            table.fault(f"has more than {_MAX_ROWS} rows", line=start)
            return
        else:
            table.rows.append((start, dict(zip(table.columns, (cell.strip() for cell in cells), strict=True))))
