"""Remembers marked workspaces in an Airflow Variable, which all workers see even when a share is not mounted."""

from __future__ import annotations

import sys
from typing import Any

from nnunet_jobs.contract.storage.files import content_hash

PREFIX = "nnunet_workspace_"
_DESCRIPTION = "The nnU-Net workspace with this jobs folder is in use. If its marker is missing, its share is not mounted."


def variable_of(jobs: str) -> str:
    """Return the name of the Variable that remembers the workspace of a jobs folder."""
    return PREFIX + content_hash(jobs, length=12)


class TaskMemory:
    """Reads and writes the memory in a task, through its supervisor and the API server."""

    @staticmethod
    def of_this_process() -> TaskMemory | None:
        """Return the memory, or None outside a running task, such as in ``dag.test()`` without a supervisor."""
        runner: Any = sys.modules.get("airflow.sdk.execution_time.task_runner")
        return TaskMemory() if runner is not None and hasattr(runner, "SUPERVISOR_COMMS") else None

    def recall(self, jobs: str) -> str | None:
        """See :class:`nnunet_jobs.contract.storage.marker.Memory`."""
        from airflow.sdk import Variable

        found = Variable.get(variable_of(jobs), default=None)
        return None if found is None else str(found)

    def remember(self, jobs: str, workspace: str) -> None:
        """See :class:`nnunet_jobs.contract.storage.marker.Memory`."""
        from airflow.sdk import Variable

        Variable.set(variable_of(jobs), workspace, description=f"{_DESCRIPTION} {jobs}")


class DatabaseMemory:
    """Reads and writes the memory in a command, in Airflow's database."""

    def recall(self, jobs: str) -> str | None:
        """See :class:`nnunet_jobs.contract.storage.marker.Memory`."""
        from airflow.models.variable import Variable
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            row = session.scalar(select(Variable).where(Variable.key == variable_of(jobs)))
            return None if row is None else str(row.val)

    def remember(self, jobs: str, workspace: str) -> None:
        """See :class:`nnunet_jobs.contract.storage.marker.Memory`."""
        from airflow.models.variable import Variable
        from airflow.utils.session import create_session

        with create_session() as session:
            Variable.set(variable_of(jobs), workspace, description=f"{_DESCRIPTION} {jobs}", session=session)
