"""Waiting out a job directory that cannot be reached now: a shared file system may be away for a while, and the work is worth more."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger("nnunet_jobs")

T = TypeVar("T")

PATIENCE_S = 3600.0
"""How long a runner and its step try to write or read what their attempt's outcome depends on."""

_PAUSE_S = 1.0
_FOR_GOOD = (errno.EROFS, errno.EACCES, errno.EPERM)  # the same user is refused the same way in an hour


def patiently(action: Callable[[], T], *, what: str, meanwhile: Callable[[], object] = lambda: None, limit_s: float = PATIENCE_S) -> T:
    """The action's value; it is done again each second while the storage answers with errors, also with that of a full disk.

    Args:
        what: For the log, such as ``the outcome``.
        meanwhile: Called each second of waiting, such as a heartbeat; what it raises ends the waiting.
        limit_s: Seconds after which the last error is raised.
    """
    deadline = time.monotonic() + limit_s
    began: float | None = None
    while True:
        try:
            found = action()
        except OSError as error:
            if error.errno in _FOR_GOOD or time.monotonic() >= deadline:
                raise
            if began is None:
                began = time.monotonic()
                log.error("%s: the storage does not answer (%s); waiting for it", what, error)
            meanwhile()
            time.sleep(_PAUSE_S)
        else:
            if began is not None:
                log.warning("%s: the storage answers again after %.0f s", what, time.monotonic() - began)
            return found


class Spells:
    """Says once that the storage is away, and once that it is back, however often it is asked for meanwhile."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._began: float | None = None

    def failed(self, error: OSError) -> None:
        """It did not answer."""
        if self._began is None:
            self._began = time.monotonic()
            log.error("%s: the storage does not answer (%s); the work goes on", self.what, error)

    def answered(self) -> None:
        """It did."""
        if self._began is not None:
            log.warning("%s: the storage answers again after %.0f s", self.what, time.monotonic() - self._began)
            self._began = None
