"""The trigger watches a job without blocking, sees its end and its loss, and cancels only for a user."""

from __future__ import annotations

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.backends import FakeBackend, FakeOutcome
from airflow_nnunet.jobs.progress import ProgressLines, duration, format_record
from airflow_nnunet.jobs.trigger import JobTrigger
from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec, make_job_id
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.workspace import Workspace


def submit(workspace: Workspace, outcome: FakeOutcome) -> JobDir:
    params = {"dataset": 4, "configuration": "2d", "fold": 0}
    spec = JobSpec(job_id=make_job_id("train", "t"), step="train", params=params, workspace=workspace)
    return FakeBackend(script=lambda spec, attempt: outcome).submit(spec)


def trigger_of(job: JobDir, **options: Any) -> JobTrigger:
    return JobTrigger(job=str(job.path), backend="fake", poll_interval=0.02, lost_after=5.0, **options)


async def events(trigger: JobTrigger) -> list[Any]:
    return [event.payload async for event in trigger.run()]


@pytest.mark.parametrize(
    ("outcome", "phase"),
    [
        (FakeOutcome(seconds=0.2), Phase.DONE),
        (FakeOutcome(), Phase.DONE),
        (FakeOutcome(seconds=0.1, failure=FailureClass.DATA), Phase.FAILED),
        (FakeOutcome(seconds=0.1, lost=True), Phase.FAILED),
    ],
)
def test_one_event_when_the_attempt_is_over(workspace: Workspace, outcome: FakeOutcome, phase: Phase) -> None:
    job = submit(workspace, outcome)
    assert asyncio.run(events(trigger_of(job))) == [{"job": str(job.path), "attempt": 1, "phase": str(phase)}]


def test_the_end_is_reported_no_sooner_than_airflow_can_take_it(workspace: Workspace) -> None:
    job = submit(workspace, FakeOutcome())
    trigger = trigger_of(job, hold_s=0.5)

    async def turns() -> int:
        reported = asyncio.ensure_future(events(trigger))
        done, _ = await asyncio.wait([reported], timeout=0.3)
        assert not done, "reported at once"
        return len(await reported)

    assert asyncio.run(turns()) == 1
    assert JobTrigger(**{name: value for name, value in trigger.serialize()[1].items() if name != "hold_s"}).hold_s == 0.0


def test_a_trigger_takes_all_its_arguments_to_the_triggerer() -> None:
    """What is left out of the stored form is the default in the triggerer: without ``hold_s`` the end would be reported at once."""
    given: dict[str, Any] = {
        "job": "/jobs/train-1", "backend": "docker", "backend_options": {"image": "nnunet"}, "poll_interval": 3.0, "lost_after": 60.0,
        "metrics_offset": 7, "log_offset": 8, "hold_s": 9.0,
    }  # fmt: skip
    assert set(given) == set(inspect.signature(JobTrigger).parameters)
    assert JobTrigger(**given).serialize()[1] == given


def test_a_lost_attempt_is_on_record_as_lost(workspace: Workspace) -> None:
    job = submit(workspace, FakeOutcome(seconds=0.05, lost=True))
    asyncio.run(events(trigger_of(job)))
    failure = job.failure()
    assert failure is not None
    assert failure.failure_class is FailureClass.LOST


def test_fault_04_a_new_triggerer_goes_on_from_what_was_stored(workspace: Workspace) -> None:
    job = submit(workspace, FakeOutcome(seconds=0.4))
    path, arguments = trigger_of(job, metrics_offset=7, backend_options={}).serialize()
    stored = json.loads(json.dumps(arguments))
    assert path == "airflow_nnunet.jobs.trigger.JobTrigger"

    async def killed_and_started_again() -> list[Any]:
        first = asyncio.ensure_future(events(JobTrigger(**stored)))
        await asyncio.sleep(0.1)
        first.cancel()
        return await events(JobTrigger(**stored))

    assert [event["phase"] for event in asyncio.run(killed_and_started_again())] == ["done"]
    assert job.cancel_requested() is None


def test_a_users_act_cancels_the_job(workspace: Workspace) -> None:
    job = submit(workspace, FakeOutcome(forever=True))
    trigger = trigger_of(job)

    async def killed() -> list[Any]:
        await trigger.on_kill()
        return await events(trigger)

    assert [event["phase"] for event in asyncio.run(killed())] == ["failed"]
    failure = job.failure()
    assert failure is not None
    assert failure.cancelled


def test_other_triggers_run_while_a_job_is_looked_at(workspace: Workspace) -> None:
    job = submit(workspace, FakeOutcome(seconds=0.3))

    async def beside() -> int:
        watching = asyncio.ensure_future(events(trigger_of(job)))
        turns = 0
        while not watching.done():
            turns += 1
            await asyncio.sleep(0.001)
        return turns

    assert asyncio.run(beside()) > 20


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            {"t": 1.0, "phase": "train", "done": 3, "total": 4, "dice": 0.7123, "loss": -0.35, "eta_s": 12.2, "epoch_s": 4.13},
            "train 3/4  dice 0.712  loss -0.350  eta 12 s  epoch 4.1 s",
        ),
        ({"phase": "copy", "done": 5}, "copy 5"),
        ({"phase": "train", "loss": None, "lr": 3e-4}, "train  lr 3.0e-04"),
        ({"phase": "wait", "what": "fold 0"}, "wait  what fold 0"),
        ({"phase": "train", "gpu_mib": 8000}, "train  gpu 8000 MiB"),
    ],
)
def test_a_record_becomes_a_short_line(record: dict[str, Any], line: str) -> None:
    assert format_record(record) == line


@pytest.mark.parametrize(("seconds", "text"), [(4.13, "4.1 s"), (12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ten_thousand_records_are_a_handful_of_lines(workspace: Workspace, tmp_path: Path) -> None:
    job = submit(workspace, FakeOutcome())
    records = [{"phase": phase, "done": number, "total": 5000} for phase in ("copy", "train") for number in range(1, 5001)]
    job.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = ProgressLines(job)
    shown = lines.poll() + lines.poll(final=True)
    assert shown[-2:] == ["copy 5000/5000", "train 5000/5000"]
    assert len(shown) <= 4
