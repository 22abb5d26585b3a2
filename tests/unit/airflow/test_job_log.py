"""A job's own log in the task's log: whole lines, bounded pieces, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_nnunet.job_log import LogLines
from nnunet_jobs.contract.jobdir import JobDir


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    return JobDir(tmp_path)


def say(job: JobDir, text: str) -> None:
    with open(job.log, "a") as file:
        file.write(text)


def test_a_line_is_shown_once_and_when_it_is_whole(job: JobDir) -> None:
    lines = LogLines(job)
    assert lines.poll() == []
    say(job, "epoch 1\nepo")
    assert lines.poll() == ["| epoch 1"]
    say(job, "ch 2\n\n")
    assert lines.poll() == ["| epoch 2"]
    say(job, "last words")
    assert lines.poll() == []
    assert lines.poll(final=True) == ["| last words"]


def test_a_retry_that_attaches_does_not_repeat_what_an_earlier_one_showed(job: JobDir) -> None:
    say(job, "before\n")
    lines = LogLines(job, offset=job.log.stat().st_size)
    say(job, "after\n")
    assert lines.poll() == ["| after"]


def test_a_flood_is_counted_and_its_end_shown(job: JobDir) -> None:
    say(job, "".join(f"line {number}\n" for number in range(100_000)))
    lines = LogLines(job)
    shown = lines.poll()
    assert "bytes of the job's log are not shown here" in shown[0]
    assert shown[-1] == "| line 99999"
    assert sum(map(len, shown)) < 128 * 1024
    assert lines.poll() == []


def test_long_lines_are_cut_and_progress_bars_show_their_last_state(job: JobDir) -> None:
    say(job, "x" * 5000 + "\n" + "\r".join(f"{percent} %" for percent in range(100)) + "\n")
    long, bar = LogLines(job).poll()
    assert (len(long), bar) == (2 + 1000 + 4, "| 99 %")


def test_bytes_that_are_no_text_do_no_harm(job: JobDir) -> None:
    job.log.write_bytes(b"\xff\xfe broken\n" + "Größe\n".encode())
    assert LogLines(job).poll()[-1] == "| Größe"
    say(job, "y" * (64 * 1024))
    lines = LogLines(job, offset=job.log.stat().st_size - 64 * 1024)
    assert len(lines.poll()) == 1, "a line longer than a piece is not waited for"
