"""What Airflow's supervisor tells a task about runs and tasks, for tests without an Airflow."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import (
    DagRunStateResult,
    ErrorResponse,
    GetDagRunState,
    GetTaskStates,
    GetVariable,
    OKResponse,
    PutVariable,
    TaskStatesResult,
    VariableResult,
)


@dataclass
class Supervisor:
    """States of runs by run id, and of tasks by run id and name (``task`` or ``task_<map index>``).

    A run that is not in ``runs`` does not exist; Airflow says so with status 404 and words that hold the ids. A run in ``broken`` is
    answered with that status.
    """

    runs: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, dict[str, str | None]] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def send(self, msg: Any) -> Any:
        """Answer one question of a task."""
        if isinstance(msg, GetVariable):
            if msg.key in self.variables:
                return VariableResult(key=msg.key, value=self.variables[msg.key])
            return ErrorResponse(error=ErrorType.VARIABLE_NOT_FOUND)
        if isinstance(msg, PutVariable):
            self.variables[msg.key] = msg.value or ""
            return OKResponse(ok=True)
        if isinstance(msg, GetTaskStates):
            return TaskStatesResult(task_states={run: self.tasks.get(run, {}) for run in msg.run_ids or ()})
        assert isinstance(msg, GetDagRunState), msg
        status = self.broken.get(msg.run_id, None if msg.run_id in self.runs else HTTPStatus.NOT_FOUND)
        if status is not None:
            detail = {"status_code": int(status), "message": f"Dag run {msg.run_id} of {msg.dag_id}", "detail": None}
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))
        return DagRunStateResult(state=self.runs[msg.run_id])

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
        """One that this process's tasks ask."""
        supervisor = cls()
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
        return supervisor
