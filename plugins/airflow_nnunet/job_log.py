"""A running job's own log as lines for the Airflow task log: in pieces of bounded size, however much the job says."""

from __future__ import annotations

from nnunet_jobs.contract.jobdir import JobDir

_PIECE = 64 * 1024
_LONGEST = 1000  # characters of a line that are shown
_PREFIX = "| "


class LogLines:
    """Reads ``log.txt`` from a byte on. A job that says more than 64 KiB between two looks has its earlier words counted, not shown."""

    def __init__(self, job: JobDir, *, offset: int = 0) -> None:
        self.job = job
        self.offset = offset

    def poll(self, *, final: bool = False) -> list[str]:
        """New whole lines since the last call. Blocking file reads: call it from a thread in a trigger.

        Args:
            final: the job has ended, so a last line without an end is shown too.
        """
        lines = []
        pending = log_size(self.job) - self.offset
        if pending > _PIECE:
            skipped = pending - _PIECE // 2
            self.offset += skipped
            lines.append(f"{_PIECE_NOTE.format(skipped)}{self.job.log}")
        data, _ = self.job.read_log(self.offset, _PIECE)
        end = len(data) if final or len(data) == _PIECE else data.rfind(b"\n") + 1
        self.offset += end
        # A progress bar draws over itself; its last state is what a reader of a log wants.
        texts = [part.decode(errors="replace").rstrip().rpartition("\r")[2] for part in data[:end].split(b"\n")]
        lines += [_PREFIX + (text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...") for text in texts if text]
        return lines


_PIECE_NOTE = "... {} bytes of the job's log are not shown here; the whole is in "


def log_size(job: JobDir) -> int:
    """Bytes of the job's log; 0 before there is one."""
    try:
        return job.log.stat().st_size
    except FileNotFoundError:
        return 0
