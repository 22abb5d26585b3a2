"""Operator of the step ``predict``: segment cases with a selected model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_nnunet.operators.base import GPU_POOL, NnunetOperator, templated
from nnunet_jobs.contract.params import PredictParams

if TYPE_CHECKING:
    from airflow.sdk import XComArg

_RENAMED = {"output": "output_folder"}  # an operator's ``output`` is already its XCom


class BatchPredictOperator(NnunetOperator):
    """Predict a folder, a list or an XCom of cases; one broken case is reported and the others are predicted.

    All fields are templates. Map it over ``part`` to split the cases over several jobs. Returns the path of ``predictions.json``,
    how many cases were ``predicted`` or ``already_done``, how many look wrong (``flagged``), and each ``failed`` one with its reason.

    Beside the segmentations lie ``predictions.json`` and ``predictions.csv`` (status, reason, volumes, and flags of what looks wrong) and
    ``contact-sheet.html``; each is of all parts that have ended. A case whose file kills its reader fails alone.

    Args:
        dataset: whose model; id or full name. model: model id; the promoted one when empty.
        cases: ``holdout`` or ``imagesTs`` of the dataset, a folder below ``input_roots`` (images, or DICOM studies), or a list of
            ``{"case": id, "images": [one path a channel]}`` or of single paths.
        series: for DICOM studies, channel name to rule, in place of those that the dataset was registered with.
        output_folder: absolute folder below ``output_roots``.
        part, parts: this job is one of ``parts`` that share the cases, by voxels; ``part`` counts from 0.
        folds: in place of the model's own. mirroring: False is faster and a little worse. step_size: of the sliding window.
        postprocessing: apply what FindBestConfigOperator selected. probabilities: also save softmax files.
        overwrite: predict again what is done already. fast: what may differ a little from stock nnU-Net's bytes for speed, any of
            ``tiles``, ``resampling``, ``half``, ``compile``; nothing when empty.
        contact_sheet: also write ``contact-sheet.html``, a page with a picture of each case, its volumes and flags.
        dicom_seg: also write ``<case>.seg.dcm``, for cases from a folder of DICOM studies. segment_codes: label name to
            ``[value, scheme, meaning]`` or ``{"category": [...], "type": [...]}``, such as ``{"liver": ["10200004", "SCT", "Liver"]}``.
        num_gpus: GPUs to predict on.
        kwargs: see :class:`NnunetOperator`.
    """

    params_class = PredictParams
    renamed = _RENAMED
    judged_together = ("part", "parts")
    absolute_paths = ("cases", "output_folder")
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
        part: int | str | XComArg = 0,
        parts: int | str | XComArg = 1,
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
        self.part = part
        self.parts = parts
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
