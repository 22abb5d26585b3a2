"""Operator of the step ``register``, which adds a dataset to nnUNet_raw."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_nnunet.jobs.assets import REGISTERED, dataset_registered
from airflow_nnunet.jobs.links import DatasetReportLink
from airflow_nnunet.operators.base import NnunetOperator, as_list
from airflow_nnunet.operators.specification import templated
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.steps.results import RegisterResult

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

_CASE_PATTERN: str = next(item.default for item in fields(RegisterParams) if item.name == "case_pattern")  # type: ignore[assignment]


class RegisterDatasetOperator(NnunetOperator):
    """Check a folder of scans and add it to nnUNet_raw with a manifest. A later run adds what is new.

    All fields are templates. Returns counts (``train``, ``holdout``, ``added``, ``changed``, ``removed``), the content
    ``hash`` and the full ``dataset`` name. Sends the event of :func:`~airflow_nnunet.jobs.assets.dataset_asset` when
    the content changed. Wrong input fails as ``data`` with all faults of all cases, and nothing is written. The button
    "Dataset report" shows faults, ranges and a picture of each case, also after a failure.

    Args:
        dataset_id: nnU-Net's dataset number, 1 to 99999.
        name: Rest of the folder name, such as ``Hippocampus``.
        source: Absolute folder to read, or a .zip, .tar, .tar.gz or .tgz of one, below ``input_roots``.
        layout: ``nnunet`` (raw v2), ``nnunet_v1`` (raw v1), ``decathlon`` (MSD), ``bids`` (labels in derivatives),
            ``csv`` (a table), ``folders`` (images and labels), ``dicom`` (a tree of DICOM files), or one that
            another distribution adds; ``auto`` recognises it.
        images: For ``folders``, the sub-folder with the images.
        labels: For ``folders``, the sub-folder with the labels; for ``bids``, the pipeline's folder where several have
            labels.
        mapping: For ``csv``, the table below the source with the columns ``case``, ``image`` (or one for each channel),
            ``label``, and optionally ``group`` and ``split``.
        bids_label: For ``bids``, name of the label files, such as ``dseg`` or ``label-lesion_mask``.
        rename: Whether to replace ids that file systems or nnU-Net cannot use by safe ones, instead of refusing them.
        case_pattern: Regular expression on the image file name with the groups ``case`` and, for several channels,
            ``channel``.
        channel_names: Name of each channel number; ``CT`` switches CT normalisation on; the source's own when empty.
        label_names: Value of each label name, or a list of values for regions; the source's own when empty.
        regions_class_order: For regions, nnU-Net's order of values: larger regions first, each with a value that no
            smaller one has.
        series: For DICOM, for each channel name the rule that chooses its series: ``modality``, ``description`` and
            ``protocol`` (regular expressions), ``tags`` (an expression or number for a DICOM keyword), ``each`` (every
            matching series is a case).
        label_rules: For labels from DICOM SEG and RTSTRUCT: for each label name the names or regular expressions of
            segments, which are merged; ``skip`` names segments to leave out, ``priority`` orders labels where segments
            overlap, ``threshold`` is the share from which a fractional segment covers a voxel (0.5).
        group_pattern: Regular expression on the case id whose group is the patient.
        holdout_fraction: Share of patients that are never used for training.
        holdout_cases: Case ids that are held out in any case.
        transfer: ``auto``, ``reflink``, ``hardlink`` or ``copy``.
        on_changed: ``update`` or ``fail`` when a known case changed.
        on_removed: ``keep``, ``drop`` or ``fail`` when a known case is no longer in the source.
        spacing_tolerance: Relative tolerance of the label's spacing and position; spacings of channels must agree as
            nnU-Net's reader requires.
        outlets: Further assets to update whenever the task succeeds.
        kwargs: See :class:`NnunetOperator`.
    """

    params_class = RegisterParams
    absolute_paths: ClassVar[tuple[str, ...]] = ("source",)
    template_fields = templated(RegisterParams)
    operator_extra_links = (*NnunetOperator.operator_extra_links, DatasetReportLink())
    ui_color = "#e6f4ea"

    def __init__(
        self,
        *,
        dataset_id: int | str | XComArg,
        name: str | XComArg,
        source: str | XComArg,
        layout: str | XComArg = "auto",
        images: str | XComArg = "images",
        labels: str | XComArg = "labels",
        mapping: str | XComArg | None = None,
        bids_label: str | XComArg | None = None,
        rename: bool | str | XComArg = False,
        case_pattern: str | XComArg = _CASE_PATTERN,
        channel_names: dict[str, str] | str | XComArg | None = None,
        label_names: dict[str, Any] | str | XComArg | None = None,
        regions_class_order: list[int] | str | XComArg | None = None,
        series: dict[str, Any] | str | XComArg | None = None,
        label_rules: dict[str, Any] | str | XComArg | None = None,
        group_pattern: str | XComArg | None = None,
        holdout_fraction: float | str | XComArg = 0.1,
        holdout_cases: list[str] | str | XComArg = (),  # type: ignore[assignment]
        transfer: str | XComArg = "auto",
        on_changed: str | XComArg = "update",
        on_removed: str | XComArg = "keep",
        spacing_tolerance: float | str | XComArg = 1e-3,
        outlets: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(outlets=[*as_list(outlets), REGISTERED], **kwargs)
        self.dataset_id = dataset_id
        self.name = name
        self.source = source
        self.layout = layout
        self.images = images
        self.labels = labels
        self.mapping = mapping
        self.bids_label = bids_label
        self.rename = rename
        self.case_pattern = case_pattern
        self.channel_names = channel_names
        self.label_names = label_names
        self.regions_class_order = regions_class_order
        self.series = series
        self.label_rules = label_rules
        self.group_pattern = group_pattern
        self.holdout_fraction = holdout_fraction
        self.holdout_cases = holdout_cases
        self.transfer = transfer
        self.on_changed = on_changed
        self.on_removed = on_removed
        self.spacing_tolerance = spacing_tolerance
        self.check_fields()

    def result_ready(self, context: Context, result: dict[str, Any]) -> None:
        """Tell waiting DAGs when the dataset's content changed."""
        dataset_registered(context, RegisterResult.from_json(result))
