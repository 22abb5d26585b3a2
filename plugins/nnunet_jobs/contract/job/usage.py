"""Records what jobs used: one line for each attempt in ``jobs/.usage/YYYY-MM.jsonl``, which only grows and outlives the jobs' folders.

    usage.<attempt>.json    in the job's folder: written by the runner when it begins to wait, when it begins to compute, and at the end;
                            ``booked`` once its line is in the month's file

The runner records the end of an attempt; if it was killed or sees only its job's folder, the watcher or the next submit does. So an
attempt may be recorded twice but is never missed; readers count it once, by its longest line. A killed runner's seconds count until
its last heartbeat. The lines hold names of datasets, teams, people and hosts, but never patient data.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import Failure
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.files import SCHEMA, append_lines, locked, read_json, write_record

log = logging.getLogger("nnunet_jobs")

RUNNING, DONE, LOST = "running", "done", "lost"
FOLDER = ".usage"
MONTH = re.compile(r"\d{4}-\d{2}\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Records what one attempt used.

    Attributes:
        started: Time of the start in UTC, as ISO 8601.
        ended: Time of the end in UTC, as ISO 8601.
        device: ``cuda``, ``cpu``, or empty while it waits.
        gpus: UUIDs of the GPUs.
        gpu_share: Part of each GPU's memory that was reserved; 1 for whole GPUs.
        slot: Whether the job holds a CPU slot.
        waited_s: Seconds from the start until the job had its device.
        computed_s: Seconds for which the job had its device.
        outcome: ``done``, a failure class, ``cancelled``, ``lost``; ``running`` before its end.
    """

    job: str
    attempt: int
    step: str
    dataset: str
    team: str
    user: str
    host: str
    started: str
    ended: str
    device: str = ""
    gpus: tuple[str, ...] = ()
    gpu_share: float = 1.0
    slot: bool = False
    cpus: int = 0
    waited_s: float = 0.0
    computed_s: float = 0.0
    outcome: str = RUNNING

    def __post_init__(self) -> None:
        object.__setattr__(self, "gpus", tuple(self.gpus))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Usage:
        """Read a line or a job's file; fields of later versions are ignored."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})


def utc(moment: float) -> str:
    """Format a file's or clock's time as ISO 8601 in UTC."""
    return dt.datetime.fromtimestamp(moment, dt.UTC).isoformat(timespec="microseconds")


def outcome_of(outcome: Failure | None) -> str:
    """Return in one word how an attempt ended."""
    if outcome is None:
        return DONE
    return "cancelled" if outcome.cancelled else str(outcome.failure_class)


# --- writing ----------------------------------------------------------------------------------------------------------
def write_attempt_usage(job: JobDir, usage: Usage, *, booked: bool = False) -> None:
    """Write the job's own record of an attempt."""
    write_record(_path(job, usage.attempt), {"booked": booked, **asdict(usage)})


def read_attempt_usage(job: JobDir, attempt: int) -> Usage | None:
    """Return the job's own record of an attempt; None when there is none yet."""
    try:
        return Usage.from_json(read_json(_path(job, attempt)))
    except FileNotFoundError:
        return None


def append_usage(job: JobDir, usage: Usage) -> None:
    """Append the line of an ended attempt to the month's file, and note this in the job's record."""
    write_attempt_usage(job, usage)
    _append(job.path.parent / FOLDER, usage)
    write_attempt_usage(job, usage, booked=True)


def record_ended_attempts(job: JobDir) -> None:
    """Append the usage of ended attempts that the runner has not recorded. Errors are logged and never fail a job."""
    try:
        state = job.state()
        for path in sorted(job.path.glob("usage.[0-9]*.json")):
            data = read_json(path)
            if data["booked"]:
                continue
            usage = Usage.from_json(data)
            # A result counts after its rename, a moment before the final phase.
            if usage.attempt < state.attempt or state.phase.final or job.result() is not None:
                append_usage(job, _ended(job, usage, path.stat().st_mtime))
    except OSError as error:
        log.warning("the usage of job %s cannot be recorded now (%s); make %s writable for this user", job.job_id, error, job.path.parent)


def _ended(job: JobDir, usage: Usage, noted: float) -> Usage:
    """Complete the record of an attempt that may have no outcome, by its last heartbeat. Both file times are from one clock."""
    if usage.outcome != RUNNING:
        return usage
    last = max(noted, job.heartbeat.stat().st_mtime if job.heartbeat.exists() else noted)
    seconds = round(last - noted, 3)
    spent = {"computed_s": seconds} if usage.device else {"waited_s": usage.waited_s + seconds}
    outcome = LOST
    if usage.attempt == job.state().attempt:
        outcome = DONE if job.result() is not None else outcome_of(job.failure())
    return replace(usage, ended=utc(last), outcome=outcome, **spent)  # type: ignore[arg-type]


def _path(job: JobDir, attempt: int) -> Path:
    return job.path / f"usage.{attempt}.json"


def _append(folder: Path, usage: Usage) -> None:
    """Append one whole line, under a lock, since on network file systems appends of several hosts would mix."""
    line = (json.dumps({"schema": SCHEMA, **asdict(usage)}, allow_nan=False) + "\n").encode()
    # Do not make the jobs folder above it, whose share may not be mounted. For every writer, the mode follows that folder's.
    folder.mkdir(mode=0o777 & os.stat(folder.parent).st_mode, exist_ok=True)
    with locked(folder / "lock", interval=0.02, parents=False):
        append_lines(folder / f"{usage.ended[:7]}.jsonl", line)


# --- reading ----------------------------------------------------------------------------------------------------------
def read_usage(jobs: str | Path, *, since: dt.datetime) -> tuple[list[Usage], int]:
    """Return attempts that ended at or after ``since``, each once, and the number of lines that cannot be read.

    Args:
        jobs: The workspace's jobs folder.

    Raises:
        PermissionError: This user may not read the folder.
    """
    found: dict[tuple[str, int, str], Usage] = {}
    damaged = 0
    folder = Path(jobs) / FOLDER
    try:
        names = sorted(os.listdir(folder))  # unlike glob, it raises if the folder is not readable
    except FileNotFoundError:
        return [], 0
    for name in names:
        if not MONTH.fullmatch(name) or name < f"{since.astimezone(dt.UTC):%Y-%m}":
            continue
        for line in (folder / name).read_bytes().splitlines():
            try:
                usage = Usage.from_json(json.loads(line))
                ended = dt.datetime.fromisoformat(usage.ended)
            except (ValueError, TypeError):
                damaged += bool(line)
                continue
            # A job that was removed and repeated has the same name and attempt, but another start.
            key = (usage.job, usage.attempt, usage.started)
            known = found.get(key)
            if ended >= since and (known is None or known.computed_s + known.waited_s <= usage.computed_s + usage.waited_s):
                found[key] = usage
    return list(found.values()), damaged
