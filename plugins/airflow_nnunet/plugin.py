"""The plugin that Airflow's processes load at start: pages of the extra links, the prediction API, and the listener."""

from __future__ import annotations

import functools
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_nnunet.jobs import listeners
from airflow_nnunet.jobs.links import URL_PREFIX, DatasetReportLink, JobFolderLink, JobLogLink


class NnunetPlugin(AirflowPlugin):  # type: ignore[misc, unused-ignore]
    """Is loaded by its entry point, or by ``plugins/nnunet_plugin.py`` if the package is not installed."""

    name = "nnunet"
    listeners = [listeners]  # noqa: RUF012  (Airflow reads class attributes)
    operator_extra_links = [JobLogLink(), JobFolderLink(), DatasetReportLink()]  # noqa: RUF012

    @functools.cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override, unused-ignore]
        """Return the apps, which are built on request, so that only the API server imports FastAPI."""
        from airflow_nnunet import prediction_api
        from airflow_nnunet.prediction_api import app as predictions
        from airflow_nnunet.ui import job_pages

        return [
            {"app": job_pages.create_app(), "url_prefix": URL_PREFIX, "name": "nnU-Net jobs"},
            {"app": predictions.create_app(), "url_prefix": prediction_api.URL_PREFIX, "name": "nnU-Net predictions"},
        ]
