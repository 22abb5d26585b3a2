"""Provides the package's DAG files as an Airflow DAG bundle, so that they need not be copied and are upgraded with it.

Name it in ``airflow.cfg`` beside the DAGs folder's own bundle::

    [dag_processor]
    dag_bundle_config_list = [
        {"name": "dags-folder", "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": {}},
        {"name": "nnunet", "classpath": "airflow_nnunet.dag_bundle.NnunetDagBundle", "kwargs": {}}]

Dataset and team files are then beside the DAGs folder (``include/datasets``, ``include/teams``), or in the folders that
section [nnunet] names.
"""

from __future__ import annotations

from typing import Any

from airflow.dag_processing.bundles.local import LocalDagBundle

from airflow_nnunet.settings.project_files import project_files


class NnunetDagBundle(LocalDagBundle):  # type: ignore[misc, unused-ignore]
    """Has the DAGs of dataset files, of models, of predictions, of the prediction API, and from archive to archive.

    Args:
        options: Options of all Airflow bundles: ``name``, ``refresh_interval``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(path=str(project_files() / "dags"), **options)
