"""One training as a hospital would write it: waiting in the triggerer, in the worker, and with a time limit; and what comes before it."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from airflow_nnunet.operators import PreprocessOperator, RegisterDatasetOperator, TrainFoldOperator
from airflow_nnunet.pipelines.dataset_config import load_config

config = load_config(Path(os.environ["E2E_ROOT"], "datasets", "phantom.yaml"))
PARAMS = {"epochs": 4, "seed": 0, "trainer": "nnUNetTrainer"}


def training(name: str, **fields: Any) -> DAG:
    with DAG(name, schedule=None, params=PARAMS, render_template_as_native_obj=True) as dag:
        TrainFoldOperator(
            task_id="train",
            dataset="Dataset900_Phantom",
            configuration="2d_tiny",
            fold=0,
            trainer="{{ params.trainer }}",
            epochs="{{ params.epochs }}",
            iterations=20,
            val_iterations=1,
            optimizer="adamw",
            initial_lr=3e-3,
            mirroring=False,
            seed="{{ params.seed }}",
            grace_s=20,
            retry_delay=timedelta(seconds=1),
            **{"retries": 2, **fields},
        )
    return dag


with DAG("prepare", schedule=None) as prepare:
    RegisterDatasetOperator(task_id="register", **config.register_fields()) >> PreprocessOperator(
        task_id="preprocess", datasets=["Dataset900_Phantom"], **config.preprocess.model_dump()
    )

deferred = training("deferred")
held = training("held", deferrable=False)
limited = training("limited", execution_timeout=timedelta(seconds=40), retries=0)
