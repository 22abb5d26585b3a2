"""What a prediction's task tells a person: that cases failed and how many, or that there was no case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from airflow.sdk.exceptions import AirflowSkipException

from airflow_nnunet.jobs.task_state import JOB_XCOM
from airflow_nnunet.operators import BatchPredictOperator
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.results import PredictResult
from support.airflow import context


def operator(**fields: Any) -> BatchPredictOperator:
    return BatchPredictOperator(task_id="predict", **{"dataset": 4, "cases": "holdout", "output_folder": "/out", **fields})


def result(**fields: Any) -> dict[str, Any]:
    counts = {"predicted": 194, "already_done": 0, "failed": [], "not_predicted": [], "empty": False, "flagged": 0, "dice": None}
    where = {"dataset": "Dataset004_Hip", "model": "m1", "output": "/out", "predictions": "/out/predictions.json", "part": 0, "parts": 1}
    return PredictResult.from_json({**where, **counts, **fields}).to_json()


class Store:
    """The task's state, as far as it is written to."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def set(self, key: str, value: Any) -> None:
        self.kept[key] = value


@contextmanager
def lines() -> Iterator[list[tuple[str, str]]]:
    """What a task logs: level and text."""
    said: list[tuple[str, str]] = []
    with structlog.testing.capture_logs() as entries:
        yield said
    said += [(str(entry["log_level"]), str(entry["event"]) % entry.get("positional_args", ())) for entry in entries]


def test_failed_cases_are_counted_where_a_person_looks() -> None:
    store = Store()
    ctx = {**context(map_index=2), "task_state_store": store}
    with lines() as said:
        operator(part=2, parts=4).result_ready(ctx, result(failed=[{"case": f"c{n}", "reason": "truncated"} for n in range(6)], part=2))
    assert store.kept == {"cases": "6 of 200 cases failed"}
    assert said[-1] == ("error", "6 of 200 cases failed; their reasons are in /out/predictions.json")
    assert ctx["map_index_template"].endswith(": 6 failed")


def test_files_that_are_no_case_are_said_once() -> None:
    store = Store()
    left_out = [{"name": "notes.txt", "reason": "is no image"}]
    with lines() as said:
        for part in range(2):
            found = result(predicted=3, not_predicted=left_out, part=part)
            operator(part=part, parts=2).result_ready({**context(), "task_state_store": store}, found)
    assert store.kept == {"cases": "3 cases predicted, 1 files or folders are not predicted"}
    assert len(said) == 1


def test_a_good_result_needs_no_words() -> None:
    store = Store()
    operator().result_ready({**context(), "task_state_store": store}, result())
    assert store.kept == {}


@pytest.mark.parametrize("cases", [[], "[]", ()])
def test_no_cases_tonight_skip_the_task_without_a_job(nnunet: Path, cases: Any) -> None:
    ctx = context()
    with pytest.raises(AirflowSkipException, match="there is no case"):
        operator(cases=cases, on_empty="skip").execute(ctx)
    assert JOB_XCOM not in ctx["ti"].pushed


def test_a_folder_that_the_job_finds_empty_skips_the_task() -> None:
    with pytest.raises(AirflowSkipException, match="there is no case"):
        operator(cases="/in", on_empty="skip").result_ready(context(), result(empty=True, predicted=0))


@pytest.mark.parametrize(("field", "value"), [("on_empty", "never"), ("max_failed", -1), ("case_pattern", "("), ("case_pattern", "p.*")])
def test_wrong_fields_are_refused_at_parse(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        operator(**{field: value})
