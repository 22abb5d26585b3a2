"""Buttons on the task's page for the job's log, folder and reports, shown by :mod:`airflow_nnunet.ui.job_pages`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlparse

import attrs
from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

URL_PREFIX = "/nnunet"


def job_url(job_id: str, page: str) -> str:
    """Return the path of a job's page in the API server, with the path of its base URL."""
    from airflow.sdk.configuration import conf

    base = urlparse(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    return f"{base}{URL_PREFIX}/jobs/{job_id}/{page}"


class JobLink(BaseOperatorLink):  # type: ignore[misc, unused-ignore]
    """Base class of links to pages of a job. ``page`` is the page's path below the job."""

    page: ClassVar[str]

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the path of the page, or an empty string before the job is submitted."""
        job_id = getattr(operator, "job_id", None)
        return job_url(job_id, self.page) if job_id else ""


@attrs.define()
class JobLogLink(JobLink):
    """Shows the job's own log, with the output of the runner and of nnU-Net."""

    name: str = "Job log"
    page: ClassVar[str] = "log"


@attrs.define()
class JobFolderLink(JobLink):
    """Shows the job's directory: specification, state, metrics, result."""

    name: str = "Job folder"
    page: ClassVar[str] = ""


@attrs.define()
class DatasetReportLink(JobLink):
    """Shows the report of a registration: faults, ranges and a picture of each case."""

    name: str = "Dataset report"
    page: ClassVar[str] = "report"
