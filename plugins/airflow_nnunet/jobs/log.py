"""Shows a running job's own log in the Airflow task log, with the job's levels, in pieces of bounded size, progress
first.

Most lines of a log are printed by nnU-Net and its libraries and have no level. They are shown folded, once a minute at
most, so that progress and warnings can be found between them.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_nnunet.jobs.progress import ProgressLines
from nnunet_jobs.contract.job.folder import JobDir

_PIECE = 64 * 1024
_LONGEST = 1000  # largest number of characters shown of a line
_PREFIX = "| "
_FOLD_S = 60.0
# Format of nnunet_jobs.__main__. In Python's own warnings the category follows the position in the code.
_OURS = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True, slots=True)
class LogLine:
    """Holds one line for the task's log.

    Attributes:
        level: Level of :mod:`logging`.
        text: Text of the line.
    """

    level: int
    text: str


class LogLines:
    """Reads ``log.txt`` from an offset. If more than 64 KiB are new, the earlier ones are counted and not shown.

    Args:
        job: The job's directory.
        offset: Byte of the log to begin at.
        fold_s: Seconds between two folded groups of lines without a level.
    """

    def __init__(self, job: JobDir, *, offset: int = 0, fold_s: float = _FOLD_S) -> None:
        self.job = job
        self.offset = offset
        self._level = logging.INFO
        self._in_traceback = False
        self._folded: list[str] = []
        self._fold_s = fold_s
        self._next_fold = time.monotonic() + fold_s

    def poll(self, *, final: bool = False) -> list[LogLine]:
        """Return new complete lines since the last call. It reads files, so a trigger calls it in a thread.

        Args:
            final: Whether the job has ended, so that an incomplete last line and all folded lines are shown.
        """
        lines = []
        pending = log_size(self.job) - self.offset
        if pending > _PIECE:
            skipped = pending - _PIECE // 2
            self.offset += skipped
            lines.append(LogLine(logging.INFO, f"{_PIECE_NOTE.format(skipped)}{self.job.log}"))
        data, _ = self.job.read_log(self.offset, _PIECE)
        end = len(data) if final or len(data) == _PIECE else data.rfind(b"\n") + 1
        self.offset += end
        # A progress bar overwrites itself; only its last state is shown.
        texts = [part.decode(errors="replace").rstrip().rpartition("\r")[2] for part in data[:end].split(b"\n")]
        for text in filter(None, texts):
            shown = _PREFIX + (text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...")
            if self._has_level(text):
                lines.append(LogLine(self._level, shown))
            else:
                self._folded.append(shown)
        if final or time.monotonic() >= self._next_fold:
            lines += self._unfold()
        return lines

    def _has_level(self, text: str) -> bool:
        """Store the level of a line, and return whether it has one or continues a message or traceback with one."""
        if match := _OURS.match(text):
            self._level, self._in_traceback = logging.getLevelNamesMapping()[match[1]], False
            return True
        if text.startswith(_TRACEBACK):
            self._level, self._in_traceback = logging.ERROR, True
            return True
        if text[0].isspace():
            return self._in_traceback or self._level > logging.INFO
        if self._in_traceback:  # the exception itself, which ends its traceback
            self._in_traceback = False
            return True
        self._level = logging.INFO
        return False

    def _unfold(self) -> list[LogLine]:
        self._next_fold = time.monotonic() + self._fold_s
        if not self._folded:
            return []
        texts = [f"::group::What nnU-Net printed ({len(self._folded)} lines)", *self._folded, "::endgroup::"]
        self._folded = []
        return [LogLine(logging.INFO, text) for text in texts]


_PIECE_NOTE = "... {} bytes of the job's log are not shown here; all of it is in "


def new_lines(readers: Sequence[ProgressLines | LogLines], *, final: bool) -> list[LogLine]:
    """Return the new lines of all readers in order. This reads files and blocks."""
    found: list[LogLine] = []
    for reader in readers:
        found += [line if isinstance(line, LogLine) else LogLine(logging.INFO, line) for line in reader.poll(final=final)]
    return found


def write_lines(log: Any, lines: Sequence[LogLine]) -> None:
    """Write lines to a task's log, each with its level."""
    for line in lines:
        log.log(line.level, "%s", line.text)


def log_size(job: JobDir) -> int:
    """Return the number of bytes of the job's log, or 0 if there is none yet."""
    try:
        return job.log.stat().st_size
    except FileNotFoundError:
        return 0
