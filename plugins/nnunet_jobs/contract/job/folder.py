"""Manages a job's directory, which is the authoritative record of the job: who writes which file, and how others read it safely.

    spec.json       written once by submit
    state.json      attempt number, phase, runner's host and pid; changed under the state lock
    heartbeat       counter, raised by the runner every second
    progress        counter, raised by the step whenever it makes progress
    log.txt         stdout and stderr of runner and step
    metrics.jsonl   one JSON object a line, appended by the step
    result.json     success; or failure.json; both by rename, last of all
    usage.<n>.json  what attempt n uses or used; see usage.py
    cancel          a user's request to stop, which the runner follows on any host
    grant.json      devices leased for an attempt before its own runner starts; then adopted.json (see grant.py)

Fencing: each attempt has a number in ``state.json``. An attempt that finds a higher number than its own stops and writes nothing more.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, Failure
from nnunet_jobs.contract.job.creation import create_folder
from nnunet_jobs.contract.job.liveness import boot_id, is_free, read_counter
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.job.state import Fenced, JobState, Phase
from nnunet_jobs.contract.storage.files import locked, read_json, write_record
from nnunet_jobs.contract.storage.marker import open_workspace


class JobDir:
    """Represents one job's directory. It is cheap to make and holds no state."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.log = self.path / "log.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.heartbeat = self.path / "heartbeat"
        self.progress = self.path / "progress"
        self.result_path = self.path / "result.json"
        self.failure_path = self.path / "failure.json"
        self.cancel_path = self.path / "cancel"
        self.runner_lock = self.path / "runner.lock"
        self.adopter_lock = self.path / "adopter.lock"

    def __repr__(self) -> str:
        return f"JobDir({str(self.path)!r})"

    @property
    def job_id(self) -> str:
        """Return the name of the job, which is the name of its directory."""
        return self.path.name

    # --- submit -------------------------------------------------------------------------------------------------
    @classmethod
    def create(cls, spec: JobSpec) -> JobDir:
        """Make the directory with its specification, or find the existing one. This is idempotent and atomic.

        Raises:
            NotMounted: The workspace's share is not mounted; nothing is made.
            ConfigError: There is a job of this id with another step.
        """
        open_workspace(spec.workspace)
        job = cls(Path(spec.workspace.jobs) / spec.job_id)
        if not job.path.exists():
            create_folder(job.path, spec)
        if job.spec().step != spec.step:
            raise ConfigError(
                field="job_id", value=spec.job_id, problem=f"{job.path} holds a {job.spec().step} job", fix="remove it or choose another id"
            )
        return job

    def begin_attempt(self, *, expected: int) -> int | None:
        """Claim the next attempt. Returns its number, or None when another caller has already begun one after ``expected``.

        The previous attempt's failure is kept as ``failure.<n>.json``; a cancel request of an earlier attempt is removed.
        """
        with self._state_lock():
            state = self.state()
            if state.attempt != expected:
                return None
            if self.failure_path.exists():
                os.replace(self.failure_path, self.path / f"failure.{state.attempt}.json")
            self.cancel_path.unlink(missing_ok=True)
            self._write_state(JobState(attempt=expected + 1, phase=Phase.SUBMITTED))
            return expected + 1

    # --- the runner's side --------------------------------------------------------------------------------------
    def set_phase(self, attempt: int, phase: Phase, message: str = "") -> None:
        """Record the phase of this attempt.

        Raises:
            Fenced: A newer attempt owns the job.
        """
        with self.owned_by(attempt):
            self._write_state(
                JobState(attempt=attempt, phase=phase, message=message, host=socket.gethostname(), pid=os.getpid(), boot_id=boot_id())
            )

    def finish(self, attempt: int, outcome: Mapping[str, Any] | Failure) -> None:
        """Write ``result.json`` or ``failure.json`` by rename, then the final phase.

        Raises:
            Fenced: A newer attempt owns the job; nothing is written.
        """
        with self.owned_by(attempt):
            if isinstance(outcome, Failure):
                write_record(self.failure_path, outcome.to_json())
                phase, message = Phase.FAILED, f"{outcome.failure_class}: {outcome.message}"
            else:
                write_record(self.result_path, outcome)
                phase, message = Phase.DONE, ""
            self._write_state(
                JobState(attempt=attempt, phase=phase, message=message, host=socket.gethostname(), pid=os.getpid(), boot_id=boot_id())
            )

    def declare_lost(self, attempt: int, failure: Failure) -> bool:
        """Record the failure of an attempt whose runner is gone; return False when it has ended or is not the newest.

        A runner that was only unreachable may still finish; its result counts until the next attempt fences it off.
        """
        with self._state_lock():
            state = self.state()
            if state.attempt != attempt or state.phase.final:
                return False
            written = self.failure()
            if written is not None and written.attempt == attempt:
                failure = written  # the runner ended between its failure and its last phase; its own failure is more exact
            else:
                write_record(self.failure_path, failure.to_json())
            self._write_state(
                JobState(
                    attempt=attempt,
                    phase=Phase.FAILED,
                    message=f"{failure.failure_class}: {failure.message}",
                    host=state.host,
                    pid=state.pid,
                    boot_id=state.boot_id,
                )
            )
            return True

    def check_fence(self, attempt: int) -> None:
        """Raise :class:`Fenced` when a newer attempt owns the job."""
        newest = self.state().attempt
        if newest > attempt:
            raise Fenced(f"attempt {newest} owns {self.job_id}; attempt {attempt} stops")

    @contextlib.contextmanager
    def owned_by(self, attempt: int) -> Iterator[None]:
        """Lock the job's state for a change that only the newest attempt may make.

        Raises:
            Fenced: A newer attempt owns the job.
        """
        with self._state_lock():
            self.check_fence(attempt)
            yield

    # --- the backend's side -------------------------------------------------------------------------------------
    def say(self, attempt: int, message: str) -> None:
        """Record what an attempt without a runner waits for. Does nothing once there is a runner, which records it itself."""
        with self._state_lock():
            state = self.state()
            if state.attempt == attempt and not state.pid and not state.phase.final and state.message != message:
                self._write_state(replace(state, message=message))

    def note_container(self, attempt: int, facts: Mapping[str, Any]) -> None:
        """Add facts to an outcome that are known only after the runner's end, such as its exit code. The first note is kept."""
        with self._state_lock():
            result, failure = self.result(), self.failure()
            if result is not None and result.get("attempt") == attempt and "container" not in result:
                write_record(self.result_path, {**result, "container": dict(facts)})
            elif failure is not None and failure.attempt == attempt and "container" not in failure.details:
                write_record(self.failure_path, replace(failure, details={**failure.details, "container": dict(facts)}).to_json())

    # --- everybody's side ---------------------------------------------------------------------------------------
    def spec(self) -> JobSpec:
        """Return the specification, as submitted."""
        return JobSpec.from_json(read_json(self.path / "spec.json"))

    def state(self) -> JobState:
        """Return the newest state."""
        data = read_json(self.path / "state.json")
        known = {item.name: data[item.name] for item in fields(JobState) if item.name in data}
        return JobState(**{**known, "phase": Phase(data["phase"])})

    def result(self) -> dict[str, Any] | None:
        """Return the step's result once it succeeded, else None."""
        try:
            data: dict[str, Any] = read_json(self.result_path)
        except FileNotFoundError:
            return None
        data.pop("schema", None)  # it describes the file, not the result
        return data

    def failure(self) -> Failure | None:
        """Return the newest attempt's failure, else None."""
        try:
            return Failure.from_json(read_json(self.failure_path))
        except FileNotFoundError:
            return None

    def earlier_failures(self) -> list[Failure]:
        """Return the failures of earlier attempts, oldest first."""
        numbered = sorted((int(path.name.split(".")[1]), path) for path in self.path.glob("failure.[0-9]*.json"))
        return [Failure.from_json(read_json(path)) for _, path in numbered]

    def request_cancel(self, reason: str) -> None:
        """Ask the runner, wherever it is, to stop the job and save its work."""
        write_record(self.cancel_path, {"reason": reason, "time": time.time()})

    def cancel_requested(self) -> str | None:
        """Return the reason of a cancel request, else None."""
        try:
            return str(read_json(self.cancel_path)["reason"])
        except FileNotFoundError:
            return None

    def beat(self) -> int:
        """Return the heartbeat counter; a watcher detects a live runner by its change, on its own monotonic clock."""
        return read_counter(self.heartbeat)

    def runner_gone(self) -> bool:
        """Whether the runner of the current attempt ran on this host and has certainly ended.

        The runner holds ``runner.lock``, which the kernel releases at its end. A runner that adopts a lease also holds
        ``adopter.lock``, from before its predecessor releases ``runner.lock`` until its own end. False for runners on other hosts.
        """
        state = self.state()
        if not state.pid or state.host != socket.gethostname():
            return False
        if state.boot_id != boot_id():
            return True
        return is_free(self.runner_lock) and is_free(self.adopter_lock)  # in this order, which the handover follows too

    def read_log(self, offset: int, limit: int = 64 * 1024) -> tuple[bytes, int]:
        """Read up to ``limit`` bytes of the log from ``offset``; return them and the next offset."""
        try:
            with open(self.log, "rb") as file:
                file.seek(offset)
                data = file.read(limit)
        except FileNotFoundError:
            return b"", offset
        return data, offset + len(data)

    def read_metrics(self, offset: int = 0, limit: int = 1 << 20) -> tuple[list[dict[str, Any]], int]:
        """Read complete metrics lines from byte ``offset``; return them and the next offset. Incomplete lines are read later.

        A line that was cut off by a full disk is left out; its writer writes it again.
        """
        try:
            with open(self.metrics, "rb") as file:
                file.seek(offset)
                data = file.read(limit)
        except FileNotFoundError:
            return [], offset
        complete = data[: data.rfind(b"\n") + 1]
        records = []
        for line in complete.splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records, offset + len(complete)

    # --- private ------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _state_lock(self) -> Iterator[None]:
        # Never make parents: if the share is not mounted, that would begin a second job folder in the empty mount point.
        with locked(self.path / "state.lock", interval=0.02, parents=False):
            yield

    def _write_state(self, state: JobState) -> None:
        write_record(
            self.path / "state.json",
            {name: getattr(state, name) for name in ("attempt", "phase", "message", "host", "pid", "boot_id")},
        )
