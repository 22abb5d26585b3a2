"""Decides whether the step makes progress, by counters and the watcher's own monotonic clock, never by wall-clock times."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

_EPOCHS = 10
_LONGEST_GAP_S = 5.0


class HangWatch:
    """Counts how long a job has made no progress; it hangs after max(10 median epochs, ``floor_s``).

    Time while the watcher itself was stopped or suspended does not count: at most five seconds between two checks do.
    """

    def __init__(self, floor_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._floor = floor_s
        self._clock = clock
        self._seen: object = None
        self._silent = 0.0
        self._running = 0.0
        self._last = clock()
        self._intervals: deque[float] = deque(maxlen=50)
        self._previous: tuple[Any, Any, float] | None = None

    @property
    def limit_s(self) -> float:
        """Return the seconds without progress that count as a hang now."""
        return max(_EPOCHS * statistics.median(self._intervals), self._floor) if self._intervals else self._floor

    @property
    def silent_s(self) -> float:
        """Return the seconds since the last progress."""
        return self._silent

    def look(self, counter: int, records: list[dict[str, Any]]) -> bool:
        """Take the newest progress counter and metrics records; True when the job hangs."""
        now = self._clock()
        passed = min(max(0.0, now - self._last), _LONGEST_GAP_S)
        self._last = now
        self._running += passed
        for record in records:
            self._learn(record)
        if counter != self._seen or records:
            self._seen = counter
            self._silent = 0.0
        else:
            self._silent += passed
        return self._silent >= self.limit_s

    def _learn(self, record: dict[str, Any]) -> None:
        """Learn the length of an epoch, the time from one ``done`` to the next of the same phase."""
        if "done" not in record:
            return
        phase, done = record.get("phase"), record["done"]
        if self._previous and self._previous[0] == phase and done != self._previous[1]:
            self._intervals.append(self._running - self._previous[2])
        self._previous = (phase, done, self._running)
