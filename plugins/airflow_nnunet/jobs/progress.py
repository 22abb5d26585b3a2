"""Formats a running job's progress as few, short lines for the Airflow task log, without patient data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.state import JobState

# At first there is at most one line every 5 s. A job that runs for days gets one a minute, about 1,500 lines a day.
_SHORTEST_GAP_S = 5.0
_LONGEST_GAP_S = 60.0
_SHOWN = ("dice", "loss", "val_loss", "lr", "eta_s", "epoch_s", "seconds", "gpu", "gpu_mib", "workers")


class ProgressLines:
    """Reads a job's metrics from an offset and returns the lines to show now."""

    def __init__(self, job: JobDir, *, offset: int = 0) -> None:
        self.job = job
        self.offset = offset
        self._phase: str | None = None
        self._state: tuple[str, str] | None = None
        self._started = time.monotonic()
        self._next_line = 0.0
        self._held: dict[str, Any] | None = None

    def poll(self, *, final: bool = False) -> list[str]:
        """Return new lines since the last call. It reads files, so a trigger calls it in a thread.

        Args:
            final: Whether the job has ended, so that the last record is shown at once.
        """
        lines = self._state_lines()
        records, self.offset = self.job.read_metrics(self.offset)
        for record in records:
            phase = str(record.get("phase", ""))
            if phase != self._phase:
                lines += self._flush()  # last record of the phase that ended
                self._phase, self._next_line = phase, 0.0
            self._held = record
        if final or time.monotonic() >= self._next_line:
            lines += self._flush()
        return lines

    def _flush(self) -> list[str]:
        if self._held is None:
            return []
        line, self._held = format_record(self._held), None
        now = time.monotonic()
        gap = min(max((now - self._started) / 100, _SHORTEST_GAP_S), _LONGEST_GAP_S)
        self._next_line = now + gap
        return [line]

    def _state_lines(self) -> list[str]:
        state: JobState = self.job.state()
        seen = (str(state.phase), state.message)
        if seen == self._state:
            return []
        self._state = seen
        head = state.message.partition("\n")[0]  # the task's error has the whole list
        return [f"job {state.phase}, attempt {state.attempt}" + (f": {head}" if head else "")]


def format_record(record: Mapping[str, Any]) -> str:
    """Format a record of ``metrics.jsonl`` as a line such as ``train 3/4  dice 0.712  loss -0.350  eta 12 s``."""
    parts = [str(record.get("phase", "progress"))]
    if "done" in record:
        parts[0] += f" {record['done']}" + (f"/{record['total']}" if "total" in record else "")
    names = [name for name in _SHOWN if name in record]
    names += [name for name in record if name not in (*_SHOWN, "t", "phase", "done", "total")]
    for name in names:
        text = _value(name, record[name])
        if text:
            parts.append(text)
    return "  ".join(parts)


def _value(name: str, value: Any) -> str:
    if value is None and "dice" in name:
        return f"{name} undefined"  # the data have no label to compute it from
    if value is None or isinstance(value, dict | list):
        return ""
    if name.endswith("_s") and isinstance(value, int | float):
        return f"{name[:-2]} {duration(value)}"
    if name == "seconds" and isinstance(value, int | float):
        return duration(value)
    if name.endswith("_mib"):
        return f"{name[:-4]} {value} MiB"
    if isinstance(value, float):
        return f"{name} {value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{name} {value:.1e}"
    return f"{name} {value}"


def duration(seconds: float) -> str:
    """Format seconds as ``4.1 s``, ``12 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
