"""Gives a step its workspace and resources, reports its progress, and says when it must stop."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import pwd
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, Interrupted
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.liveness import write_counter
from nnunet_jobs.contract.storage.files import locked, open_new
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.patience import OutageLog

log = logging.getLogger("nnunet_jobs")

_KEPT_RECORDS = 10_000  # records kept during an outage; a training of days reports fewer


@dataclass(slots=True, kw_only=True)
class StepContext:
    """The environment in which a step runs.

    Attributes:
        workspace: Workspace of the job.
        job: The job directory.
        attempt: Number of this attempt, from 1.
        device: ``cuda`` or ``cpu``; decided by the lease.
        gpus: UUIDs of the leased GPUs, the only ones that torch sees.
        cpus: Number of cores to use.
        memory_mib: Limit on the memory in MiB; no limit if None.
        stop: Set by SIGTERM; a step checks it between pieces of work, saves and raises Interrupted.
        person: The user who typed a command, if known better than by the process's user.
    """

    workspace: Workspace
    job: JobDir
    attempt: int = 1
    device: str = "cpu"
    gpus: tuple[str, ...] = ()
    cpus: int = 1
    memory_mib: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    person: str | None = None
    _beats: int = 0
    _unwritten: list[bytes] = field(default_factory=list)
    _torn: bool = False
    _outage: OutageLog = field(default_factory=lambda: OutageLog("progress"))

    def progress(self, phase: str, done: int | None = None, total: int | None = None, **values: Any) -> None:
        """Report progress: one line of ``metrics.jsonl``, shown in the Airflow task log, and a heartbeat.

        Args:
            phase: Current phase, such as ``train``, ``validate``, ``copy``.
            done: Amount of work done, in the phase's own units.
            total: Total amount of work, in the same units.
            **values: Numbers and short strings (loss, dice, eta_s); never patient data. NaN and infinities become null.
        """
        record: dict[str, Any] = {"t": round(time.time(), 3), "phase": phase}
        if done is not None:
            record["done"] = done
        if total is not None:
            record["total"] = total
        record.update({name: _finite(value) for name, value in values.items()})
        self._unwritten = [*self._unwritten, (json.dumps(record, allow_nan=False) + "\n").encode()][-_KEPT_RECORDS:]
        try:
            self.write_records()
        except OSError as error:  # the job directory is unavailable or its disk full: the work continues, and the record is written later
            self._outage.failed(error)
        else:
            self._outage.answered()
        self.beat()

    def beat(self) -> None:
        """Send a heartbeat without a record, for work between two records. It is cheap enough for every iteration."""
        self._beats += 1
        try:
            write_counter(self.job.progress, self._beats)
        except OSError as error:
            self._outage.failed(error)

    def write_records(self) -> None:
        """Write the records that could not be written to ``metrics.jsonl`` during an outage.

        Raises:
            OSError: The storage is still unavailable.
        """
        fd = open_new(self.job.metrics, os.O_WRONLY | os.O_APPEND)
        try:
            while self._unwritten:
                line = b"\n" * self._torn + self._unwritten[0]  # ends a line that a full disk cut off
                written = os.write(fd, line)  # one write: lines of several processes never mix
                if written < len(line):
                    self._torn = self._torn or written > 0
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.job.metrics))
                self._torn = False
                del self._unwritten[0]
        finally:
            os.close(fd)

    def check_stop(self) -> None:
        """Raise Interrupted when the job is to stop."""
        if self.stop.is_set():
            raise Interrupted("stopped on request; finished pieces of work are kept")

    @contextlib.contextmanager
    def content_lock(self, path: Path, *, what: str) -> Iterator[None]:
        """Hold the kernel lock on what the step writes, so that of two jobs for the same content one works and the other waits.

        Children inherit it: while a process of a killed step still writes, no other job starts.
        """
        waited = False

        def poll() -> None:
            nonlocal waited
            if not waited:
                log.info("waiting for another job that works on %s", what)
                self.progress("wait", what=what)
                waited = True
            self.beat()
            self.check_stop()

        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(path, poll=poll, inheritable=True))
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise  # the code that describes the failure also explains missing permissions
                raise ConfigError(
                    f"{path.parent}: cannot be written ({error.strerror}), so the work on {what} is not begun; mount it writable"
                ) from error
            yield


def acting(context: StepContext) -> dict[str, str]:
    """Return who acts, for a dataset's history: ``user`` of the operating system, and dag, run and task of the job's labels.

    ``triggered_by`` is the user known to Airflow, or the one who typed a command.
    """
    try:
        labels: Mapping[str, str] = context.job.spec().labels
    except FileNotFoundError:  # a command without a job
        labels = {"triggered_by": context.person} if context.person else {}
    return {
        "user": user_name(),
        **{name: labels[name] for name in ("triggered_by", "owner", "dag_id", "run_id", "task_id") if name in labels},
    }


def user_name() -> str:
    """Return the name of this process's user, or the number if the system has no name for it (in a container)."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
