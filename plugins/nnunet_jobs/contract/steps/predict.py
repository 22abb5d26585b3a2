"""Defines the parameters of the step *predict*."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.base import StepParams
from nnunet_jobs.contract.steps.patterns import require_case_pattern
from nnunet_jobs.contract.steps.segment_codes import parse_segment_codes
from nnunet_jobs.contract.steps.series_rules import parse_rules

HELD_OUT = ("holdout", "imagesTs")
"""Values of ``cases`` for cases of the dataset itself."""
FAST = ("tiles", "resampling", "half", "compile")
"""Ways to predict faster, with results that may differ slightly from stock nnU-Net's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictParams(StepParams):
    """Predict cases with a selected model.

    Attributes:
        dataset: Id or full name of the dataset whose model predicts.
        model: Model id; the promoted one if None.
        cases: ``holdout`` or ``imagesTs`` of the dataset, a folder below ``input_roots`` (images, or DICOM studies), or
            a list of ``{"case": id, "images": [one path a channel]}`` or of single paths (one channel). In a folder of
            images each is named ``<case>_<channel, 4 digits><ending>``, such as ``liver_007_0000.nii.gz``, even if there
            is only one channel.
        case_pattern: For a folder of images with other names: regular expression on the file name with the groups
            ``case`` and, for several channels, ``channel`` (a number), as for registration.
        on_empty: ``fail`` or ``skip`` when there is no case: ``cases=[]``, or nothing in the folder.
        series: For DICOM studies, channel name to rule, instead of those that the dataset was registered with.
        output: Folder below ``output_roots``. Each model's predictions are kept below its ``models``; the link
            ``newest`` and links beside it show what the latest run's model has predicted.
        part: Number of the part that this job predicts, from 0.
        parts: Number of jobs that share the cases; each gets about the same number of voxels.
        max_failed: Cases that may fail; beyond it the job fails when it has predicted the others. Cases of other parts
            that have ended count too. No limit if None, but a job of which no case can be predicted always fails.
        folds: Override of the model's folds.
        mirroring: Mirror the input for prediction; False is faster and slightly less accurate.
        step_size: Step size of the sliding window.
        postprocessing: Apply what FindBestConfigOperator selected.
        probabilities: Also save softmax files.
        overwrite: Predict cases again even if they are done by content.
        fast: Ways to predict faster, with results that may differ slightly from stock nnU-Net's: any of ``tiles``
            (several windows at once), ``resampling`` (of the logits, by torch), ``half`` (weights, on GPUs) and
            ``compile`` (torch.compile; worthwhile for many cases).
        contact_sheet: Also write ``contact-sheet.html``, a page with a picture of each case.
        dicom_seg: Also write ``<case>.seg.dcm``, for cases from a folder of DICOM studies.
        segment_codes: Codes of each label, such as ``{"liver": ["10200004", "SCT", "Liver"]}``; see
            :func:`~nnunet_jobs.contract.steps.segment_codes.parse_segment_codes`.
    """

    step: ClassVar[str] = "predict"

    dataset: str | int
    cases: str | list[Any]
    output: str
    model: str | None = None
    case_pattern: str | None = None
    on_empty: str = "fail"
    part: int = 0
    parts: int = 1
    max_failed: int | None = None
    folds: list[int | str] | None = None
    mirroring: bool = True
    step_size: float = 0.5
    postprocessing: bool = True
    probabilities: bool = False
    overwrite: bool = False
    fast: list[str] = field(default_factory=list)
    contact_sheet: bool = True
    series: dict[str, Any] | None = None
    dicom_seg: bool = False
    segment_codes: dict[str, Any] = field(default_factory=dict)

    def _check(self) -> None:
        for name, parse, value in (("segment_codes", parse_segment_codes, self.segment_codes), ("series", parse_rules, self.series or {})):
            try:
                parse(value)
            except ValueError as error:
                raise ConfigError(where=f"{self.step}:", field=name, value=value, problem=str(error)) from error
        self.require(self.parts >= 1, "parts", "must be 1 or more")
        self.require(0 <= self.part < self.parts, "part", f"must be 0 to {self.parts - 1}")
        self.require(self.max_failed is None or self.max_failed >= 0, "max_failed", "must be 0 or more, or empty for no limit")
        self.require(self.on_empty in ("fail", "skip"), "on_empty", "must be fail or skip")
        if self.case_pattern is not None:
            require_case_pattern(self, self.case_pattern)
        self.require(0 < self.step_size <= 1, "step_size", "must be more than 0 and at most 1")
        self.require(set(self.fast) <= set(FAST), "fast", f"must be some of {', '.join(FAST)}")
