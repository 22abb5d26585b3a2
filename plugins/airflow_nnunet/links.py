"""Buttons in the task's page: the job's log and its folder, shown by :mod:`airflow_nnunet.jobs_view`."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlparse

import attrs
from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

URL_PREFIX = "/nnunet"


def job_url(job_id: str, page: str) -> str:
    """Path of a job's page in the API server, below its own base URL when it has one."""
    from airflow.sdk.configuration import conf

    base = urlparse(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    return f"{base}{URL_PREFIX}/jobs/{job_id}/{page}"


@attrs.define()
class JobLogLink(BaseOperatorLink):  # type: ignore[misc, unused-ignore]
    """The job's own log: runner, nnU-Net and all."""

    name: str = "Job log"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Path of the log page; empty before the job is submitted."""
        return _link(operator, "log")


@attrs.define()
class JobFolderLink(BaseOperatorLink):  # type: ignore[misc, unused-ignore]
    """The job's directory: specification, state, metrics, result."""

    name: str = "Job folder"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Path of the folder page; empty before the job is submitted."""
        return _link(operator, "")


def _link(operator: BaseOperator, page: str) -> str:
    job_id = getattr(operator, "job_id", None)
    return job_url(job_id, page) if job_id else ""
