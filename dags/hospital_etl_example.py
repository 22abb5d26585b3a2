"""Uses a single operator among a hospital's own tasks: segments the night's studies when a new model is promoted.

The DAG waits for an asset, and has its own tasks before and after the operator.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_nnunet import BatchPredictOperator, model_asset

DATASET = "Dataset004_Hippocampus"

with DAG(
    "hospital_etl_example",
    description="Segment incoming studies with the newest promoted model and write the volumes for the registry",
    schedule=[model_asset(DATASET)],
    catchup=False,
    tags={"nnunet", "example"},
    doc_md=__doc__,
    params={
        "incoming": Param("/data/incoming/night", type="string", title="Folder with NIfTI studies"),
        "output": Param("/data/predictions/night", type="string", title="Folder for segmentations"),
    },
) as dag:

    @task
    def studies(params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return the cases to segment, here every NIfTI file of the night."""
        folder = Path((params or {})["incoming"])
        return [{"case": path.name.removesuffix(".nii.gz"), "images": [str(path)]} for path in sorted(folder.glob("*.nii.gz"))]

    @task
    def volumes(predicted: Any) -> str:
        """Write a table of volumes in millilitres for the registry, beside the segmentations."""
        report = Path(predicted["predictions"])
        table = report.with_name("volumes.csv")
        with open(table, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["case", "structure", "ml"])
            for case, entry in json.loads(report.read_text())["cases"].items():
                for structure, ml in (entry.get("volumes_ml") or {}).items():
                    writer.writerow([case, structure, ml])
        return str(table)

    segment = BatchPredictOperator(task_id="segment", dataset=DATASET, cases=studies(), output_folder="{{ params.output }}")
    volumes(segment.output)
