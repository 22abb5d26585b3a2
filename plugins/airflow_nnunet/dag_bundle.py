"""The package's DAG files as an Airflow DAG bundle: they come with an upgrade, and nothing is copied.

In ``airflow.cfg``, beside the DAGs folder's own bundle::

    [dag_processor]
    dag_bundle_config_list = [
        {"name": "dags-folder", "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": {}},
        {"name": "nnunet", "classpath": "airflow_nnunet.dag_bundle.NnunetDagBundle", "kwargs": {}}]

Dataset and team files are then beside the DAGs folder (``include/datasets``, ``include/teams``), or where section [nnunet] says.
"""

from __future__ import annotations

from typing import Any

from airflow.dag_processing.bundles.local import LocalDagBundle

from airflow_nnunet.settings.project_files import project_files


class NnunetDagBundle(LocalDagBundle):  # type: ignore[misc, unused-ignore]
    """One DAG a dataset file, prediction, the prediction API, and from archive to archive.

    Args:
        options: Options of Airflow's bundles: ``name``, ``refresh_interval``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(path=str(project_files() / "dags"), **options)
