"""A job's own log in the task's log: whole lines, bounded pieces, nothing twice."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from airflow_nnunet.jobs.log import LogLine, LogLines, new_lines, write_lines
from airflow_nnunet.jobs.progress import ProgressLines
from devtools.testbed.data import decathlon
from nnunet_jobs.contract.job.folder import JobDir
from support.airflow import environment, run


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    return JobDir(tmp_path)


def say(job: JobDir, text: str) -> None:
    with open(job.log, "a") as file:
        file.write(text)


TIME = "2026-01-31 18:00:00,000"


def texts(lines: list[LogLine]) -> list[str]:
    """What is shown, without the fold around what has no level."""
    return [line.text for line in lines if not line.text.startswith("::")]


def test_a_line_is_shown_once_and_when_it_is_whole(job: JobDir) -> None:
    lines = LogLines(job, fold_s=0)
    assert lines.poll() == []
    say(job, "epoch 1\nepo")
    assert texts(lines.poll()) == ["| epoch 1"]
    say(job, "ch 2\n\n")
    assert texts(lines.poll()) == ["| epoch 2"]
    say(job, "last words")
    assert lines.poll() == []
    assert texts(lines.poll(final=True)) == ["| last words"]


def test_a_retry_that_attaches_does_not_repeat_what_an_earlier_one_showed(job: JobDir) -> None:
    say(job, "before\n")
    lines = LogLines(job, offset=job.log.stat().st_size)
    say(job, "after\n")
    assert texts(lines.poll(final=True)) == ["| after"]


def test_a_flood_is_counted_and_its_end_shown(job: JobDir) -> None:
    say(job, "".join(f"line {number}\n" for number in range(100_000)))
    lines = LogLines(job, fold_s=0)
    shown = texts(lines.poll())
    assert "bytes of the job's log are not shown here" in shown[0]
    assert shown[-1] == "| line 99999"
    assert sum(map(len, shown)) < 128 * 1024
    assert lines.poll() == []


def test_long_lines_are_cut_and_progress_bars_show_their_last_state(job: JobDir) -> None:
    say(job, "x" * 5000 + "\n" + "\r".join(f"{percent} %" for percent in range(100)) + "\n")
    long, bar = texts(LogLines(job).poll(final=True))
    assert (len(long), bar) == (2 + 1000 + 4, "| 99 %")


def test_bytes_that_are_no_text_do_no_harm(job: JobDir) -> None:
    job.log.write_bytes(b"\xff\xfe broken\n" + "Größe\n".encode())
    assert texts(LogLines(job).poll(final=True))[-1] == "| Größe"
    say(job, "y" * (64 * 1024))
    lines = LogLines(job, offset=job.log.stat().st_size - 64 * 1024, fold_s=0)
    assert len(texts(lines.poll())) == 1, "a line longer than a piece is not waited for"


def test_levels_are_the_jobs_own(job: JobDir) -> None:
    say(job, f"{TIME} INFO epoch 1 begins\n{TIME} WARNING two cases\n    a, b\nwhat a library prints\n")
    say(job, 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: wrong\nprinted\n')
    say(job, f"{TIME} ERROR bug: wrong\n{TIME} INFO attempt 1 failed\n")
    lines = LogLines(job).poll(final=True)
    shown = [(line.level, line.text.removeprefix(f"| {TIME} ")) for line in lines]
    assert shown == [
        (logging.INFO, "INFO epoch 1 begins"),
        (logging.WARNING, "WARNING two cases"),
        (logging.WARNING, "|     a, b"),
        (logging.ERROR, "| Traceback (most recent call last):"),
        (logging.ERROR, '|   File "x.py", line 1'),
        (logging.ERROR, "| ValueError: wrong"),
        (logging.ERROR, "ERROR bug: wrong"),
        (logging.INFO, "INFO attempt 1 failed"),
        (logging.INFO, "::group::What nnU-Net printed (2 lines)"),
        (logging.INFO, "| what a library prints"),
        (logging.INFO, "| printed"),
        (logging.INFO, "::endgroup::"),
    ]


def test_progress_comes_first_and_what_is_printed_is_held_back_and_folded(job: JobDir, caplog: pytest.LogCaptureFixture) -> None:
    say(job, "".join(f"Epoch {number}\n" for number in range(50)) + f"{TIME} WARNING the disk is slow\n")
    job.metrics.write_text(json.dumps({"t": 1, "phase": "train", "done": 1, "total": 4, "dice": 0.5}) + "\n")
    (job.path / "state.json").write_text(json.dumps({"phase": "running", "attempt": 1, "message": ""}))
    readers = [ProgressLines(job), LogLines(job)]
    log = logging.getLogger("test-task")
    with caplog.at_level(logging.INFO, logger="test-task"):
        write_lines(log, new_lines(readers, final=False))
    shown = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("INFO", "train 1/4  dice 0.500") in shown
    assert shown[-1] == ("WARNING", f"| {TIME} WARNING the disk is slow"), "no line of the fifty before a minute has passed"
    assert len(shown) == 3
    assert sum("Epoch" in line.text for line in new_lines(readers, final=True)) == 50


FAILING = """
import os
from airflow.sdk import DAG
from airflow_nnunet.operators import RegisterDatasetOperator

with DAG("failing", schedule=None) as dag:
    RegisterDatasetOperator(task_id="register", dataset_id=4, name="Small", source=os.environ["SOURCE"], retries=0, deferrable=False)

if __name__ == "__main__":
    print("state", dag.test().state)
"""


def test_a_list_of_faults_stands_once_in_a_tasks_log(home: Path) -> None:
    source = decathlon(home / "in" / "small", ["a", "b", "c", "d", "e", "f"])
    for case in ("a", "b"):
        image = source / "imagesTr" / f"{case}.nii.gz"
        image.write_bytes(image.read_bytes()[:-200])
    file = home / "dags" / "failing.py"
    file.write_text(FAILING)
    done = run([file], environment(home, input_roots=str(home / "in")) | {"SOURCE": str(source)})
    said = done.stdout + done.stderr
    assert "state failed" in said, said[-3000:]
    for case in ("a", "b"):
        assert len([line for line in said.splitlines() if f"{case}.nii.gz" in line and "truncated" in line]) == 1, said
    assert said.count("Traceback (most recent call last)") == 1, "the operator's alone: a person's fault is none of the code"
