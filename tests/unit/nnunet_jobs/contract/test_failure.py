"""Errors about a field: how their text is assembled, and how their parts reach whoever asked for the job."""

from __future__ import annotations

import datetime as dt
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.jobs.exceptions import InvalidConfig, from_job_error, to_airflow_error
from nnunet_jobs.contract.failure import ConfigError, DataError, Failure, FailureClass, Fault


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"field": "epochs", "value": 0, "problem": "must be 1 or more"}, "epochs=0: must be 1 or more"),
        ({"field": "fold", "value": "x", "problem": "unknown", "fix": "use 'all'"}, "fold='x': unknown; use 'all'"),
        ({"field": "token", "problem": "must be ASCII", "where": "connection 'a':"}, "connection 'a': token: must be ASCII"),
        ({"field": "python", "value": None, "problem": "is empty", "where": "[nnunet]"}, "[nnunet] python=None: is empty"),
        ({"field": "out", "value": Path("/a b"), "problem": "is there"}, "out='/a b': is there"),
        ({"field": "since", "value": dt.date(2026, 1, 31), "problem": "is late"}, "since=2026-01-31: is late"),
    ],
)
def test_the_text_is_made_of_the_parts(parts: dict[str, Any], text: str) -> None:
    error = ConfigError(**parts)
    assert str(error) == text
    assert error.parts == parts


def test_a_plain_message_has_no_parts() -> None:
    error = ConfigError("serve needs uvicorn")
    assert (str(error), error.parts, error.field) == ("serve needs uvicorn", {}, None)


def test_parts_pass_through_processes_and_files_to_airflow() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(field="fold", value=[0, "all"], problem="twice", fix="name it once", where="train:")))
    failure = Failure(failure_class=FailureClass.CONFIG, message=str(error), parts=error.parts)
    read = Failure.from_json(json.loads(json.dumps(failure.to_json())))
    again = read.to_error()
    assert isinstance(again, ConfigError)
    assert (str(again), again.parts) == (str(error), error.parts)
    for raised in (to_airflow_error(read), from_job_error(error)):
        assert isinstance(raised, InvalidConfig)
        assert raised.parts == {"where": "train:", "field": "fold", "value": [0, "all"], "problem": "twice", "fix": "name it once"}


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, Path("/data")])
def test_values_that_json_cannot_hold_are_kept_as_text(value: Any) -> None:
    failure = Failure(failure_class=FailureClass.CONFIG, message="", parts={"field": "a", "value": value, "problem": "b"})
    assert isinstance(json.loads(json.dumps(failure.to_json(), allow_nan=False))["value"], str)


def test_failures_of_other_versions_are_read() -> None:
    plain = {"failure_class": "data", "message": "wrong", "attempt": 1, "faults": [{"code": "a", "message": "b", "since": 2}]}
    failure = Failure.from_json({**plain, "colour": "red"})
    assert failure.faults == (Fault(code="a", message="b"),)
    assert isinstance(failure.to_error(), DataError)
    assert not failure.parts


def test_an_error_keeps_its_parts_under_another_name() -> None:
    error = ConfigError(field="epochs", value=0, problem="must be 1 or more", where="train:").told(field="tumour__epochs")
    assert str(error) == "tumour__epochs=0: must be 1 or more"
    with pytest.raises(TypeError, match="colour"):
        ConfigError(field="a", problem="b", colour="red")  # type: ignore[call-overload]
