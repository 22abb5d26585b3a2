"""What jobs used: measured by real runners, booked once whoever sees the end, kept through crashes, and read again."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec, Resources
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.job.usage import Usage, append_usage, read_usage, record_ended_attempts, write_attempt_usage
from nnunet_jobs.contract.storage.workspace import Workspace
from support.jobs import Watch, backend, child_of, make_spec, no_runner_left, wait_final, wait_for, wait_gone

LONG_AGO = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
SLOT = Resources(gpus=1, device="cpu", grace_s=5.0)


@pytest.fixture(autouse=True)
def tidy(workspace: Workspace) -> Iterator[None]:
    with no_runner_left(workspace):
        yield


def usage(job: str = "train-1", attempt: int = 1, ended: str = "2026-01-31T12:00:00.000000+00:00", **fields: Any) -> Usage:
    known = {
        "step": "train",
        "dataset": "Dataset004_Hip",
        "team": "mri",
        "user": "",
        "host": "here",
        "started": "2026-01-31T11:00:00+00:00",
    }
    return Usage(job=job, attempt=attempt, ended=ended, **(known | fields))


def booked(workspace: Workspace) -> list[Usage]:
    found, damaged = read_usage(workspace.jobs, since=LONG_AGO)
    assert damaged == 0
    return found


def empty_job(workspace: Workspace, name: str = "job") -> JobDir:
    return JobDir.create(make_spec(workspace, name))


# --- real runners ---------------------------------------------------------------------------------------------------
def labelled(spec: JobSpec) -> JobSpec:
    return replace(spec, labels={"team": "mri", "owner": "radiology", "triggered_by": "ada"})


def test_a_done_a_failed_a_cancelled_and_a_lost_attempt_are_booked_each_with_its_own_time(workspace: Workspace, tmp_path: Path) -> None:
    runs = backend()
    go = tmp_path / "go"
    first = runs.submit(labelled(make_spec(workspace, "first", SLOT, until=str(go))))
    wait_for(lambda: first.state().phase is Phase.RUNNING, what="the first job")
    waiting = runs.submit(labelled(make_spec(workspace, "waiting", SLOT)))
    wait_for(lambda: waiting.state().message.startswith("waiting for a CPU slot"), what="a waiting job")
    waiting.request_cancel("the test")
    wait_final(waiting)
    go.touch()
    result = first.result() or wait_for(first.result, what="the first job's result")
    by_outcome = {item.outcome: item for item in booked(workspace)}
    assert set(by_outcome) == {"done", "cancelled"}
    done, cancelled = by_outcome["done"], by_outcome["cancelled"]
    assert (done.team, done.user, done.dataset, done.step, done.host) == ("mri", "ada", "Dataset001_Test", "register", os.uname().nodename)
    assert (done.device, done.slot, done.gpus) == ("cpu", True, ())
    assert {name: result[name] for name in ("waited_s", "computed_s", "gpu_share")} == {
        "waited_s": done.waited_s, "computed_s": done.computed_s, "gpu_share": 1.0,
    }  # fmt: skip
    assert done.computed_s > cancelled.waited_s > 0, "it computed all the while that the other one waited"
    assert (cancelled.device, cancelled.computed_s) == ("", 0.0)

    failed = runs.submit(make_spec(workspace, "failed", **{"raise": "data"}))
    failure = wait_final(failed).failure
    assert failure is not None
    assert failure.details["computed_s"] > 0
    lost = runs.submit(make_spec(workspace, "lost", SLOT, until=str(tmp_path / "later")))
    step, beat = child_of(lost), lost.beat()
    wait_for(lambda: lost.beat() > beat + 1, what="two heartbeats")
    os.kill(lost.state().pid, signal.SIGKILL)
    wait_gone(lost.state().pid)
    status = runs.status(lost, Watch())
    assert status.failure is not None
    by_job = {item.job: item for item in booked(workspace)}
    assert (by_job[failed.job_id].outcome, by_job[failed.job_id].slot) == ("data", False)
    assert by_job[lost.job_id].outcome == "lost"
    assert 0.5 < by_job[lost.job_id].computed_s < 60, "until the last heartbeat"
    wait_gone(step)
    (tmp_path / "later").touch()
    runs.submit(lost.spec())
    wait_final(lost)
    attempts = sorted((item.attempt, item.outcome) for item in booked(workspace) if item.job == lost.job_id)
    assert attempts == [(1, "lost"), (2, "done")]
    wait_for(lambda: lost.state().phase.final, what="the runner's last word")
    shutil.rmtree(lost.path)
    assert sum(item.job == lost.job_id for item in booked(workspace)) == 2, "the jobs' folders may go, the usage stays"


# --- bookkeeping ----------------------------------------------------------------------------------------------------
def test_an_attempt_is_booked_once_although_its_runner_and_a_watcher_saw_the_end(workspace: Workspace) -> None:
    job = empty_job(workspace)
    append_usage(job, usage(job.job_id, computed_s=50.0, device="cpu", outcome="lost"))
    append_usage(job, usage(job.job_id, computed_s=60.0, device="cpu", outcome="done", ended="2026-02-01T00:00:01.000000+00:00"))
    (found,) = booked(workspace)
    assert (found.outcome, found.computed_s) == ("done", 60.0)
    assert sorted(path.name for path in (Path(workspace.jobs) / ".usage").glob("*.jsonl")) == ["2026-01.jsonl", "2026-02.jsonl"]
    assert read_usage(workspace.jobs, since=dt.datetime(2026, 2, 1, tzinfo=dt.UTC))[0] == [found]


def test_the_same_job_run_again_after_its_folder_was_removed_counts_again(workspace: Workspace) -> None:
    for started in ("2026-01-31T11:00:00+00:00", "2026-01-31T11:30:00+00:00"):
        job = empty_job(workspace)
        append_usage(job, usage(job.job_id, started=started))
        shutil.rmtree(job.path)
    assert len(booked(workspace)) == 2


def test_a_runner_that_sees_only_its_jobs_folder_leaves_the_booking_to_the_watcher(workspace: Workspace) -> None:
    job = empty_job(workspace)
    assert job.begin_attempt(expected=0) == 1
    record = usage(job.job_id, computed_s=5.0, device="cuda", gpus=("GPU-1",), outcome="done")
    write_attempt_usage(job, record)
    record_ended_attempts(job)
    assert booked(workspace) == [], "it is not over"
    job.finish(1, {"attempt": 1, "result": {}})
    record_ended_attempts(job)
    record_ended_attempts(job)
    assert booked(workspace) == [record]
    assert len((Path(workspace.jobs) / ".usage" / "2026-01.jsonl").read_text().splitlines()) == 1


def test_a_torn_line_is_counted_as_damaged_and_harms_no_other(workspace: Workspace) -> None:
    job = empty_job(workspace)
    append_usage(job, usage("train-1"))
    path = Path(workspace.jobs) / ".usage" / "2026-01.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"job": "train-2", "attem')  # the writer was killed here
    append_usage(job, usage("train-3"))
    found, damaged = read_usage(workspace.jobs, since=LONG_AGO)
    assert sorted(item.job for item in found) == ["train-1", "train-3"]
    assert damaged == 1


def _book_many(path: Path, who: int) -> None:
    for number in range(25):
        append_usage(JobDir(path), usage(f"train-{who}-{number}", attempt=who + 1))


def test_many_writers_at_once_lose_and_mix_no_line(workspace: Workspace) -> None:
    job = empty_job(workspace)
    writers = [multiprocessing.get_context("fork").Process(target=_book_many, args=(job.path, who)) for who in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert len(booked(workspace)) == 100


def test_trouble_with_the_books_never_fails_a_job(workspace: Workspace) -> None:
    (Path(workspace.jobs)).mkdir(parents=True)
    (Path(workspace.jobs) / ".usage").write_text("somebody's file")
    job = backend().submit(make_spec(workspace, "plain"))
    assert wait_final(job).unwrap()["attempt"] == 1
    assert "cannot be recorded here" in job.log.read_text()
    (Path(workspace.jobs) / ".usage").unlink()
    backend().status(job, Watch())
    assert [item.outcome for item in booked(workspace)] == ["done"], "the watcher made up for it"


def test_a_line_holds_nothing_of_a_jobs_parameters(workspace: Workspace) -> None:
    job = backend().submit(make_spec(workspace, "canary", note=str(Path(workspace.jobs).parent / "CANARY^NAME")))
    wait_final(job)
    (line,) = (Path(workspace.jobs) / ".usage").glob("*.jsonl")
    assert "CANARY" not in line.read_text()
    assert set(json.loads(line.read_text())) == {"schema", *Usage.__dataclass_fields__}
