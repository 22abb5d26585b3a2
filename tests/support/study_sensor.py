"""Runs of the study sensor as Airflow makes them, without an Airflow: execute, defer, trigger, resume."""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from airflow_nnunet.dicomweb import DicomWebStudySensor, DicomWebStudyTrigger
from support.airflow import Task
from support.supervisor import Supervisor


class History:
    """The runs of a task, one after another; each has ended well when the next begins."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor

    def context(self, run: str | None = None) -> Any:
        """The next run, or one of a name that is begun again."""
        number = len(self.supervisor.runs) + 1
        name = run or f"run-{number}"
        self.supervisor.runs[name] = "success"
        return {
            "ti": Task(run_id=name),
            "dag_run": SimpleNamespace(run_after=datetime.datetime(2024, 1, 16, 1, tzinfo=datetime.UTC)),
        }


def sensor(**fields: Any) -> DicomWebStudySensor:
    return DicomWebStudySensor(**{"task_id": "task", "poke_interval": 0.5, "stable_for": 1.0, "modality": "MR", "timeout": 60, **fields})


def trigger_of(task: DicomWebStudySensor, ctx: Any) -> DicomWebStudyTrigger:
    """What Airflow's database holds while the sensor is deferred."""
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(ctx)
    path, arguments = deferred.value.trigger.serialize()
    assert path == "airflow_nnunet.dicomweb.trigger.DicomWebStudyTrigger"
    assert datetime.timedelta(seconds=59) < deferred.value.timeout <= datetime.timedelta(seconds=60)
    return DicomWebStudyTrigger(**json.loads(json.dumps(arguments)))


async def first_event(trigger: DicomWebStudyTrigger) -> Any:
    """What the trigger says; a sensor that has nothing to hand out would wait without end, which fails the test instead."""
    async with asyncio.timeout(60):
        (payload,) = [event.payload async for event in trigger.run()]
    return payload


def run(task: DicomWebStudySensor, ctx: Any) -> list[str]:
    """A run of the sensor, with all that crosses Airflow's database as JSON."""
    event = json.loads(json.dumps(asyncio.run(first_event(trigger_of(task, ctx)))))
    found: list[str] = task.resume_execution("execute_complete", {"event": event, "deadline": time.time() + 60}, ctx)
    return found


def uids(payload: Any) -> list[str]:
    return [item["uid"] for item in payload["studies"]]
