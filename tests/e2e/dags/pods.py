"""A job in a pod that waits for a file, watched from the triggerer; the connections ``pods`` and ``cluster`` say which cluster."""

import json
import os
from typing import Any

from airflow.sdk import DAG

from airflow_nnunet.operators import RegisterDatasetOperator


class PodToy(RegisterDatasetOperator):
    """Its result says nothing about a dataset, and its source is no folder."""

    absolute_paths = ()

    def result_ready(self, context: Any, result: dict[str, Any]) -> None:
        pass


with DAG("toy_pod", schedule=None) as dag:
    PodToy(
        task_id="toy",
        dataset_id=1,
        name="T",
        source=json.dumps({"until": f"{os.environ['E2E_ROOT']}/toy_pod.end"}),
        nnunet_conn_id="pods",
        grace_s=5,
    )
