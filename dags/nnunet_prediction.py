"""Predicts with a promoted model. Runs are triggered by hand with a form, or through the API."""

from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_nnunet import BatchPredictOperator

with DAG(
    "nnunet_prediction",
    description="Segment a folder or a list of images with a dataset's promoted model",
    schedule=None,
    catchup=False,
    tags={"nnunet", "prediction"},
    doc_md=__doc__,
    params={
        "dataset": Param(
            type="string",
            pattern="^([0-9]+|Dataset[0-9]{3,}_.+)$",
            title="Dataset",
            description="Dataset whose model predicts: number or full name, such as 4 or Dataset004_Hippocampus.",
        ),
        "model": Param(None, type=["null", "string"], title="Model", description="Model id; empty means the promoted one."),
        "cases": Param(
            type=["string", "array"],
            pattern="^(holdout|imagesTs|/.*)$",
            title="Cases",
            description="An absolute folder below input_roots, whose images are named <case>_0000.nii.gz (also with one channel), "
            "a list of images or of {case, images}, or holdout or imagesTs.",
        ),
        "output": Param(type="string", pattern="^/", title="Output folder", description="Absolute folder below output_roots."),
        "parts": Param(
            1,
            type="integer",
            exclusiveMinimum=0,
            exclusiveMaximum=65,
            title="Parts",
            description="Number of parallel tasks for the cases.",
        ),
        "max_failed": Param(
            None,
            type=["null", "integer"],
            exclusiveMinimum=-1,
            title="Failed cases",
            description="With more, the task fails; no limit if empty.",
        ),
        "on_empty": Param("fail", enum=["fail", "skip"], title="Without cases", description="What a task without cases does."),
        "mirroring": Param(True, type="boolean", title="Mirroring", description="Off is faster and slightly worse.", section="Details"),
        "case_pattern": Param(
            None,
            type=["null", "string"],
            title="Naming",
            description="Regular expression with the group case, for a folder of images with other names.",
            section="Details",
        ),
        "overwrite": Param(False, type="boolean", title="Predict again", description="Repeat finished predictions too.", section="Details"),
    },
    render_template_as_native_obj=True,
) as dag:

    @task
    def split(params: dict[str, Any] | None = None) -> list[dict[str, int]]:
        """Return the parts, one for each mapped task."""
        parts = (params or {})["parts"]
        return [{"part": part, "parts": parts} for part in range(parts)]

    BatchPredictOperator.partial(
        task_id="predict",
        dataset="{{ params.dataset }}",
        model="{{ params.model }}",
        cases="{{ params.cases }}",
        output_folder="{{ params.output }}",
        max_failed="{{ params.max_failed }}",
        on_empty="{{ params.on_empty }}",
        case_pattern="{{ params.case_pattern }}",
        mirroring="{{ params.mirroring }}",
        overwrite="{{ params.overwrite }}",
        map_index_template="part {{ task.part }} of {{ task.parts }}",
    ).expand_kwargs(split())
