"""Real jobs with a step that waits for a file, one waited for in the worker and one in the triggerer.

The connection ``toys`` names the program with that step; everything else is the site's.
"""

import json
import os
from typing import Any

from airflow.sdk import DAG

from airflow_nnunet.operators import RegisterDatasetOperator


class Toy(RegisterDatasetOperator):
    """Its result says nothing about a dataset, and its source is no folder."""

    absolute_paths = ()

    def result_ready(self, context: Any, result: dict[str, Any]) -> None:
        pass


for name, deferrable in (("toy_polled", False), ("toy_deferred", True)):
    with DAG(name, schedule=None) as dag:
        Toy(
            task_id="toy",
            dataset_id=1,
            name="T",
            source=json.dumps({"until": f"{os.environ['E2E_ROOT']}/{name}.end"}),
            nnunet_conn_id="toys",
            deferrable=deferrable,
            grace_s=20,
        )
    globals()[name] = dag
