"""Segments new studies of an archive: waits for complete ones, fetches them, predicts, and stores the results back.

Each study has its own tasks. A failed study does not delay others, and clearing its tasks continues where they stopped.
The next runs get a failed study again several times, before it is reported; see docs/how-to/dicom.md. To run it on a
schedule, such as every 30 minutes, give `schedule` below a value and the parameter `dataset` a default, because a
scheduled run uses the form's defaults. A run that finds nothing new is skipped, and one whose dataset has no promoted
model ends before it takes a study. Set up a connection of type dicomweb first (include/connections.example.json) and
the pools (airflow nnunet sync-pools).
"""

from typing import Any

from airflow.sdk import DAG, Param, task, task_group

from airflow_nnunet import BatchPredictOperator, DicomWebRetrieveOperator, DicomWebStoreOperator, DicomWebStudySensor

ARCHIVE: dict[str, Any] = {"dicomweb_conn_id": "{{ params.archive }}", "modality": "{{ params.modality }}"}
SERIES = "{{ params.series_description }}"
# A folder for each study's results, named as the study's own folder.
OUTPUT = "{{ params.output }}/{{ ti.xcom_pull(task_ids='study.retrieve', key='name', map_indexes=ti.map_index) }}"
OPTIONAL: dict[str, Any] = {"type": ["null", "string"], "maxLength": 64}

with DAG(
    "nnunet_dicom_pull",
    description="Fetch new studies from an archive, segment them with a promoted model, store the segmentations back",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    tags={"nnunet", "prediction", "dicom"},
    doc_md=__doc__,
    params={
        "dataset": Param(
            None,
            type=["null", "string"],
            title="Dataset",
            description="Dataset whose model predicts: number or full name, such as Dataset004_Hippocampus. Every run needs it.",
        ),
        "modality": Param("MR", type="string", pattern="^[A-Z0-9_]{1,16}$", title="Modality", description="Modality of the series."),
        "description": Param(None, **OPTIONAL, title="Study description", description="Pattern with * and ?; empty means any."),
        "series_description": Param(None, **OPTIONAL, title="Series description", description="Pattern with * and ?; empty means any."),
        "lookback_days": Param(
            7, type="integer", minimum=0, maximum=3650, title="Days back", description="Largest age of a study, by its study date."
        ),
        "only_new": Param(True, type="boolean", title="Only new studies", description="If off, all studies of these days are taken again."),
        "incoming": Param("/data/incoming/pacs", type="string", title="Folder for studies", description="Absolute, below input_roots."),
        "output": Param("/data/predictions/pacs", type="string", title="Folder for results", description="Absolute, below output_roots."),
        "archive": Param("dicomweb_default", type="string", title="Archive", description="Connection of type dicomweb.", section="Details"),
        "stable_for": Param(
            300,
            type="integer",
            minimum=1,
            title="Stable for",
            description="Seconds without a new image make a study complete.",
            section="Details",
        ),
    },
    render_template_as_native_obj=True,
) as dag:

    @task
    def model(params: dict[str, Any] | None = None) -> str:
        """Return the promoted model. Without one, no study is taken from the archive."""
        from airflow_nnunet import require_champion

        return require_champion((params or {})["dataset"])

    new_studies = DicomWebStudySensor(
        task_id="new_studies",
        **ARCHIVE,
        description="{{ params.description }}",
        series_description=SERIES,
        lookback_days="{{ params.lookback_days }}",
        only_new="{{ params.only_new }}",
        stable_for="{{ params.stable_for }}",
        timeout=25 * 60,
        soft_fail=True,
    )

    @task_group
    def study(uid: str) -> None:
        """Process one study from the archive and back."""
        retrieve = DicomWebRetrieveOperator(
            task_id="retrieve",
            **ARCHIVE,
            series_description=SERIES,
            study=uid,
            folder="{{ params.incoming }}",
            on_empty="skip",
            multiple_outputs=True,
            pool="pacs",
        )
        predict = BatchPredictOperator(
            task_id="predict",
            dataset="{{ params.dataset }}",
            cases=retrieve.output["folder"],
            output_folder=OUTPUT,
            dicom_seg=True,
            multiple_outputs=True,
        )
        DicomWebStoreOperator(task_id="store", dicomweb_conn_id=ARCHIVE["dicomweb_conn_id"], folder=predict.output["output"], pool="pacs")

    model() >> new_studies
    study.expand(uid=new_studies.output)
