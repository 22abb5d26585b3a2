"""Operator of the step ``predict``, which segments cases with a selected model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.exceptions import AirflowSkipException

from airflow_nnunet.operators.base import NnunetOperator
from airflow_nnunet.operators.specification import templated
from airflow_nnunet.settings.pool_names import GPU_POOL
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.steps.results import PredictResult

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

_RENAMED = {"output": "output_folder"}  # an operator's ``output`` is already its XCom


class BatchPredictOperator(NnunetOperator):
    """Predict a folder, a list or an XCom of cases. A broken case is reported, and the others are predicted.

    All fields are templates. Map it over ``part`` to split the cases over several jobs. Returns the path of
    ``predictions.json``, how many cases were ``predicted`` or ``already_done``, how many look wrong (``flagged``), and
    with their reasons the ``failed`` cases and other files of the folder (``not_predicted``). The last line of the log,
    the task state (``cases``), and a mapped task's name show how many cases failed.

    ``output_folder`` keeps each model's predictions in a folder below ``models``, which is ``output`` in the result.
    The link ``newest``, and links beside it, show the predictions of the latest run's model. Beside the segmentations
    are ``predictions.json`` and ``predictions.csv`` (status, reason, volumes, and flags) and ``contact-sheet.html``,
    for all parts that have ended. If a case's file crashes its reader, only that case fails.

    Args:
        dataset: Dataset whose model predicts; id or full name.
        model: Model id; the promoted one when empty.
        cases: ``holdout`` or ``imagesTs`` of the dataset, a folder below ``input_roots`` (images, or DICOM studies), or
            a list of ``{"case": id, "images": [one path for each channel]}`` or of single paths. Images in a folder are
            named ``<case>_<channel, 4 digits><ending>``, such as ``liver_007_0000.nii.gz``, also with one channel.
        case_pattern: For a folder of images with other names: regular expression on the file name with the groups
            ``case`` and, for several channels, ``channel`` (a number), as for registration.
        on_empty: ``fail``, or ``skip`` the task, when there is no case: ``cases=[]`` or an empty folder.
        series: For DICOM studies, a rule for each channel name, instead of those that the dataset was registered with.
        output_folder: Absolute folder below ``output_roots``.
        part: Index of the part that this job predicts, from 0.
        parts: Number of jobs that share the cases; each gets about the same number of voxels.
        max_failed: Number of cases that may fail, with those of other parts that have ended. With more, the task fails
            after it has predicted the others. No limit when empty, but a task always fails if all its cases fail.
        folds: Folds to predict with; the model's own when empty.
        mirroring: Whether to mirror the input for prediction; False is faster and slightly worse.
        step_size: Step size of the sliding window.
        postprocessing: Whether to apply the postprocessing that FindBestConfigOperator selected.
        probabilities: Whether to save softmax files too.
        overwrite: Whether to repeat finished predictions.
        fast: Faster methods whose results differ slightly from nnU-Net's: any of ``tiles``, ``resampling``, ``half``,
            ``compile``; none when empty.
        contact_sheet: Whether to write ``contact-sheet.html``, a page with a picture of each case, its volumes and
            flags.
        dicom_seg: Whether to write ``<case>.seg.dcm``, for cases from a folder of DICOM studies.
        segment_codes: ``[value, scheme, meaning]`` or ``{"category": [...], "type": [...]}`` of each label name, such
            as ``{"liver": ["10200004", "SCT", "Liver"]}``.
        num_gpus: Number of GPUs to predict on.
        kwargs: See :class:`NnunetOperator`.
    """

    params_class = PredictParams
    renamed = _RENAMED
    judged_together = ("part", "parts")
    absolute_paths: ClassVar[tuple[str, ...]] = ("cases", "output_folder")
    template_fields = templated(PredictParams, _RENAMED)
    default_pool = GPU_POOL
    ui_color = "#e4f7fb"

    def __init__(
        self,
        *,
        dataset: str | int | XComArg,
        cases: str | list[Any] | XComArg,
        output_folder: str | XComArg,
        model: str | XComArg | None = None,
        case_pattern: str | XComArg | None = None,
        on_empty: str | XComArg = "fail",
        part: int | str | XComArg = 0,
        parts: int | str | XComArg = 1,
        max_failed: int | str | XComArg | None = None,
        folds: list[int | str] | str | XComArg | None = None,
        mirroring: bool | str | XComArg = True,
        step_size: float | str | XComArg = 0.5,
        postprocessing: bool | str | XComArg = True,
        probabilities: bool | str | XComArg = False,
        overwrite: bool | str | XComArg = False,
        fast: list[str] | str | XComArg | None = None,
        contact_sheet: bool | str | XComArg = True,
        series: dict[str, Any] | str | XComArg | None = None,
        dicom_seg: bool | str | XComArg = False,
        segment_codes: dict[str, Any] | str | XComArg | None = None,
        num_gpus: int | str | XComArg = 1,
        pool: str = GPU_POOL,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_gpus=num_gpus, pool=pool, **kwargs)
        self.dataset = dataset
        self.cases = cases
        self.output_folder = output_folder
        self.model = model
        self.case_pattern = case_pattern
        self.on_empty = on_empty
        self.part = part
        self.parts = parts
        self.max_failed = max_failed
        self.folds = folds
        self.mirroring = mirroring
        self.step_size = step_size
        self.postprocessing = postprocessing
        self.probabilities = probabilities
        self.overwrite = overwrite
        self.fast = [] if fast is None else fast
        self.contact_sheet = contact_sheet
        self.series = series
        self.dicom_seg = dicom_seg
        self.segment_codes = {} if segment_codes is None else segment_codes
        self.check_fields()

    def execute(self, context: Context) -> Any:
        """Run the job, or skip an empty list of cases without a job if ``on_empty`` says so."""
        if self.on_empty == "skip" and _is_empty_list(self.cases):
            raise AirflowSkipException("cases=[]: there is no case, so nothing is predicted (on_empty=skip)")
        return super().execute(context)

    def result_ready(self, context: Context, result: dict[str, Any]) -> None:
        """Show how many cases failed, or skip the task when there was no case."""
        found = PredictResult.from_json(result)
        if found.empty:
            raise AirflowSkipException(f"cases={self.cases!r}: there is no case, so nothing is predicted (on_empty=skip)")
        failed, left_out = len(found.failed), len(found.not_predicted)
        if not failed and not left_out:
            return
        done = found.predicted + found.already_done
        words = f"{failed} of {done + failed} cases failed" if failed else f"{done} cases predicted"
        words += f", {left_out} files or folders are not predicted" if left_out else ""
        if found.part and not failed:
            return  # the first part reports what all parts see
        _set_task_state(context, words)
        if failed:
            _name_mapped_task(context, f"{failed} failed")
            self.log.error("%s; their reasons are in %s", words, found.predictions)
        else:
            self.log.warning("%s; their reasons are in %s", words, found.predictions)


def _is_empty_list(cases: Any) -> bool:
    """Return whether the rendered field is a list without entries, or a lazy list of XComs without entries."""
    if isinstance(cases, str):
        return cases.replace(" ", "") == "[]"
    return isinstance(cases, Sequence) and len(cases) == 0


def _set_task_state(context: Context, words: str) -> None:
    """Store a sentence in the task's state, which Airflow shows beside XComs. An error here must not fail the task."""
    try:
        store: Any = context["task_state_store"]  # type: ignore[typeddict-item, unused-ignore]
        store.set("cases", words)
    except Exception:
        logging.getLogger(__name__).warning("the task's state could not be written", exc_info=True)


def _name_mapped_task(context: Context, words: str) -> None:
    """Add words to the name of a mapped task in the grid."""
    index = getattr(context["ti"], "map_index", -1)
    if index is None or index < 0:
        return
    template = context.get("map_index_template") or str(index)
    context["map_index_template"] = f"{template}: {words}"
