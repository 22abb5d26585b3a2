"""Two teams with short jobs, each of which waits for a file of its own: a flood, and a few that come late."""

import json
import os
from typing import Any

from airflow.sdk import DAG

from airflow_nnunet.operators import RegisterDatasetOperator
from airflow_nnunet.settings.pool_names import GPU_POOL
from support.teams import FLOOD, LATE

GATES = f"{os.environ['E2E_ROOT']}/gates"


class Toy(RegisterDatasetOperator):
    """Computes on a device and says nothing about a dataset; its source is no folder."""

    absolute_paths = ()
    default_pool = GPU_POOL

    def result_ready(self, context: Any, result: dict[str, Any]) -> None:
        pass


def team(name: str, jobs: int) -> DAG:
    with DAG(name, schedule=None) as dag:
        Toy.partial(task_id="toy", dataset_id=1, name="Toy", num_gpus=1, device="cpu", grace_s=20, team=name).expand(
            source=[json.dumps({"until": f"{GATES}/{name}-{number}"}) for number in range(jobs)]
        )
    return dag


flood, late = team("flood", FLOOD), team("late", LATE)
