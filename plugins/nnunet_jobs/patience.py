"""Retries file operations while a shared file system is unavailable, so that an outage does not end the work."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger("nnunet_jobs")

T = TypeVar("T")

PATIENCE_S = 3600.0
"""Seconds for which a runner and its step retry to write or read what their attempt's outcome depends on."""

_PAUSE_S = 1.0
_FOR_GOOD = (errno.EROFS, errno.EACCES, errno.EPERM)  # a retry of the same user would be refused too


def patiently(action: Callable[[], T], *, what: str, meanwhile: Callable[[], object] = lambda: None, limit_s: float = PATIENCE_S) -> T:
    """Return the action's value; retry it each second while the storage returns errors or the disk is full.

    Args:
        what: Name for the log, such as ``the outcome``.
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


class OutageLog:
    """Logs once that the storage is unavailable, and once that it is available again."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._began: float | None = None

    def failed(self, error: OSError) -> None:
        """Take note that it did not answer."""
        if self._began is None:
            self._began = time.monotonic()
            log.error("%s: the storage does not answer (%s); the work continues", self.what, error)

    def answered(self) -> None:
        """Take note that it answered."""
        if self._began is not None:
            log.warning("%s: the storage answers again after %.0f s", self.what, time.monotonic() - self._began)
            self._began = None
