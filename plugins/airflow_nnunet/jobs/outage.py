"""Waits for storage that does not answer, because jobs continue without their watchers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from nnunet_jobs.contract.failure import Lost
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.marker import NotMounted, read_marker

T = TypeVar("T")

_SAY_AGAIN_S = 300.0
_PAUSE_S = 1.0
_DELIVER_S = 3600.0


class JobFolderGone(Lost):
    """The storage answers and the job's folder is missing, so it was removed."""


class Outage:
    """Records for one watcher of a job how long the storage has answered with errors.

    There is no limit to an outage of the storage. If a job's folder is missing while the jobs folder has its marker,
    that is no outage: after ``lost_after_s`` the job counts as lost.

    Args:
        job: Job whose files are watched.
        log: Logger for the beginning and the end of an outage, and every five minutes in a long one.
        lost_after_s: Seconds after which a missing folder is believed; network file systems show a folder late.
    """

    def __init__(self, job: JobDir, log: Any, *, lost_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.job = job
        self.log = log
        self.lost_after_s = lost_after_s
        self._clock = clock
        self._since: float | None = None
        self._said = 0.0
        self._last = 0.0
        self._gone = 0.0

    def began(self, error: OSError) -> None:
        """Record that the job's files could not be read.

        Raises:
            JobFolderGone: The storage answers, but the job's folder is missing.
        """
        now = self._clock()
        if self._since is None:
            self._since = self._last = now
            self._said = now
            self.log.warning("the job's files cannot be read now (%s); the job goes on, and this task waits for its storage", error)
        elif now - self._said >= _SAY_AGAIN_S:
            self._said = now
            self.log.warning("the job's files cannot be read for %.0f s now (%s)", now - self._since, error)
        # At most a quarter of the limit is counted between two checks, because this process may have been stopped
        # itself.
        passed, self._last = min(now - self._last, self.lost_after_s / 4), now
        self._gone = self._gone + passed if folder_is_gone(self.job) else 0.0
        if self._gone >= self.lost_after_s:
            raise gone(self.job)

    def ended(self) -> None:
        """Record that the job's files could be read."""
        if self._since is None:
            return
        self.log.warning("the job's files can be read again after %.0f s", self._clock() - self._since)
        self._since = None
        self._gone = 0.0


def folder_is_gone(job: JobDir) -> bool:
    """Return whether a job's folder is missing although the jobs folder exists with its marker."""
    try:
        return read_marker(job.path.parent) is not None and not (job.path / "spec.json").exists()
    except (OSError, ValueError):
        return False


def gone(job: JobDir) -> JobFolderGone:
    """Return the error for a job whose folder was removed."""
    return JobFolderGone(f"{job.path}: the job's folder was removed; the next try starts the job again")


def patiently(look: Callable[[], T], *, log: Any, limit_s: float, job: JobDir | None = None) -> T:
    """Return the value of ``look``, which is repeated each second while the storage gives errors or is not mounted.

    Args:
        limit_s: Seconds after which the last error is raised.
        job: Job whose missing folder is an answer and not an outage.

    Raises:
        NotMounted: The storage was not mounted for longer than the limit.
        Lost: The storage gave errors for longer than the limit.
        PermissionError: As ``look`` raised it; waiting does not help.
    """
    deadline = time.monotonic() + limit_s
    told = False
    while True:
        try:
            found = look()
        except PermissionError:
            raise
        except (OSError, NotMounted) as error:
            if job is not None and isinstance(error, FileNotFoundError) and folder_is_gone(job):
                raise gone(job) from error
            if time.monotonic() >= deadline:
                if isinstance(error, NotMounted):
                    raise
                raise Lost(f"the workspace's storage does not answer for {limit_s:.0f} s: {error}") from error
            if not told:
                told = True
                log.warning("the workspace's storage does not answer (%s); waiting up to %.0f s for it", error, limit_s)
            time.sleep(min(_PAUSE_S, limit_s / 10))
        else:
            if told:
                log.warning("the workspace's storage answers again")
            return found


def deliver(cancel: Callable[[], None], get_log: Callable[[], Any]) -> None:
    """Cancel a job now or, if its storage does not answer, as soon as it does within an hour."""
    try:
        cancel()
    except PermissionError:
        raise
    except OSError as error:
        log = get_log()  # after an execution timeout, the cancel must come first
        log.warning("the job's storage does not answer (%s); the job is cancelled as soon as it does", error)
        _wishes.add(cancel, log)


class _Wishes:
    """Holds cancel requests that wait for the storage, and a thread that tries them again each second."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, Callable[[], None], Any]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, cancel: Callable[[], None], log: Any) -> None:
        """Add a request."""
        with self._lock:
            self._waiting.append((time.monotonic() + _DELIVER_S, cancel, log))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, daemon=True, name="nnunet-cancel")
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_PAUSE_S)
            with self._lock:
                waiting, self._waiting = self._waiting, []
            left = [wish for wish in waiting if not self._done(*wish)]
            with self._lock:
                self._waiting += left
                if not self._waiting:
                    self._thread = None
                    return

    def _done(self, until: float, cancel: Callable[[], None], log: Any) -> bool:
        try:
            cancel()
        except OSError as error:
            if time.monotonic() < until:
                return False
            log.error("a job was not cancelled: its storage did not answer for %.0f s (%s)", _DELIVER_S, error)
        except Exception:
            log.exception("a job was not cancelled")
        else:
            log.info("the job's storage answers again; the job was asked to stop")
        return True


_wishes = _Wishes()
