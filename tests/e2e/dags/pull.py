"""Studies from an archive and segmentations back, with a stand-in for the model, looking more often than the project's own DAG."""

import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task, task_group

from airflow_nnunet.dicomweb import DicomWebRetrieveOperator, DicomWebStoreOperator, DicomWebStudySensor

ROOT = Path(os.environ["E2E_ROOT"])
PARAMS = {"modality": "MR", "series_description": None, "timeout": 20}


class Sensor(DicomWebStudySensor):
    """Waits as long as the run says: long where studies come, however slow the machine, and short where none does."""

    def execute(self, context: Any) -> Any:
        self.timeout = context["params"]["timeout"]
        return super().execute(context)


with DAG("pull", schedule=None, params=PARAMS, render_template_as_native_obj=True) as dag:
    new = Sensor(
        task_id="new_studies",
        modality="{{ params.modality }}",
        series_description="{{ params.series_description }}",
        date_from="2024-01-01",
        stable_for=2,
        poke_interval=1,
        soft_fail=True,
    )

    @task
    def draw(folder: str, name: str) -> str:
        """What a model would have drawn."""
        from support.orthanc import made_seg

        output = ROOT / "work" / "predictions" / name
        made_seg(sorted(Path(folder).glob("*/*.dcm")), output / "case.seg.dcm")
        return str(output)

    @task_group
    def study(uid: str) -> None:
        """One study from the archive and back."""
        retrieve = DicomWebRetrieveOperator(
            task_id="retrieve",
            study=uid,
            modality="{{ params.modality }}",
            series_description="{{ params.series_description }}",
            folder=str(ROOT / "incoming" / "pacs"),
            multiple_outputs=True,
            pool="pacs",
        )
        DicomWebStoreOperator(task_id="store", folder=draw(retrieve.output["folder"], retrieve.output["name"]), pool="pacs")

    study.expand(uid=new.output)
