"""Operator of the step ``register``: take a dataset into nnUNet_raw."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from airflow_nnunet.assets import REGISTERED, dataset_registered
from airflow_nnunet.links import DatasetReportLink
from airflow_nnunet.operators.base import NnunetOperator, as_list, templated
from nnunet_jobs.contract.params import RegisterParams

if TYPE_CHECKING:
    from airflow.sdk import Context

_CASE_PATTERN: str = next(item.default for item in fields(RegisterParams) if item.name == "case_pattern")  # type: ignore[assignment]


class RegisterDatasetOperator(NnunetOperator):
    """Check a folder of scans and take it into nnUNet_raw with a manifest; a later run appends what is new.

    All fields are templates. Returns counts (``train``, ``holdout``, ``added``, ``changed``, ``removed``), the content ``hash`` and
    the full ``dataset`` name. Sends the event of :func:`~airflow_nnunet.assets.dataset_asset` when the content changed. Wrong input
    fails as ``data`` with all faults of all cases, and nothing is written. The button "Dataset report" shows faults, ranges and a picture
    of each case, after a failure too.

    Args:
        dataset_id: nnU-Net's number, 1 to 99999. name: the rest of the folder name.
        source: absolute folder to read, below ``input_roots``.
        layout: ``nnunet`` (raw v2), ``decathlon`` (MSD), ``folders`` (images and labels); ``auto`` looks.
        images, labels: sub-folders for ``folders``.
        case_pattern: regular expression on the image file name with the groups ``case`` and, for several channels, ``channel``.
        channel_names: channel number to name; ``CT`` switches CT normalisation on; the source's own when empty.
        label_names: label name to value, or to a list of values for regions; the source's own when empty.
        regions_class_order: for regions, nnU-Net's order of values.
        group_pattern: regular expression on the case id whose group is the patient.
        holdout_fraction: share of patients never trained on. holdout_cases: case ids that are held out in any case.
        transfer: ``auto``, ``reflink``, ``hardlink`` or ``copy``.
        on_changed: ``update`` or ``fail`` when a known case changed. on_removed: ``keep``, ``drop`` or ``fail``.
        spacing_tolerance: relative tolerance between channels and label.
        outlets: further assets to update whenever the task succeeds.
        kwargs: see :class:`NnunetOperator`.
    """

    params_class = RegisterParams
    template_fields = templated(RegisterParams)
    operator_extra_links = (*NnunetOperator.operator_extra_links, DatasetReportLink())
    ui_color = "#e6f4ea"

    def __init__(
        self,
        *,
        dataset_id: int | str,
        name: str,
        source: str,
        layout: str = "auto",
        images: str = "images",
        labels: str = "labels",
        case_pattern: str = _CASE_PATTERN,
        channel_names: dict[str, str] | str | None = None,
        label_names: dict[str, Any] | str | None = None,
        regions_class_order: list[int] | str | None = None,
        group_pattern: str | None = None,
        holdout_fraction: float | str = 0.1,
        holdout_cases: list[str] | str = (),  # type: ignore[assignment]
        transfer: str = "auto",
        on_changed: str = "update",
        on_removed: str = "keep",
        spacing_tolerance: float | str = 1e-3,
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
        self.case_pattern = case_pattern
        self.channel_names = channel_names
        self.label_names = label_names
        self.regions_class_order = regions_class_order
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
        dataset_registered(context, result)
