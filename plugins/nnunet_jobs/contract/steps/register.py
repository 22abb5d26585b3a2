"""Defines the parameters of the step *register*."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from nnunet_jobs.contract import third_party
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.base import StepParams
from nnunet_jobs.contract.steps.label_rules import LabelRules
from nnunet_jobs.contract.steps.patterns import compile_pattern, require_case_pattern
from nnunet_jobs.contract.steps.series_rules import channel_rules

LAYOUTS = ("auto", "nnunet", "nnunet_v1", "decathlon", "bids", "csv", "folders", "dicom")
"""Layouts of this distribution; entry points of the group :data:`LAYOUTS_GROUP` add others."""
LAYOUTS_GROUP = "nnunet_jobs.layouts"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterParams(StepParams):
    """Register a dataset in nnUNet_raw.

    Attributes:
        dataset_id: nnU-Net's number, 1 to 99999.
        name: The rest of the folder name.
        source: Folder to read, or a .zip, .tar, .tar.gz or .tgz of one, below ``input_roots``.
        layout: ``nnunet`` (raw v2), ``nnunet_v1`` (raw v1, ``TaskXXX``), ``decathlon`` (MSD), ``bids`` (labels in
            derivatives), ``csv`` (a table, see ``mapping``), ``folders`` (images and labels), ``dicom`` (a tree of
            DICOM files), ``auto`` (recognise it); or a layout that another distribution adds.
        images: For ``folders``, the sub-folder with the images.
        labels: For ``folders``, the sub-folder with the labels; for ``bids``, the pipeline's folder where several have
            labels.
        mapping: For ``csv``, the table below the source: columns ``case``, ``image`` (or one for each channel, by name
            or number), ``label`` (empty for test images), and optionally ``group`` (patient) and ``split`` (``train``,
            ``holdout``, ``test``).
        bids_label: For ``bids``, the label file to use: its suffix, with entities if needed, such as
            ``label-lesion_mask``.
        rename: Replace ids that are not safe for file systems or nnU-Net, and keep the mapping in a file that only its
            owner can read; otherwise such ids are refused.
        case_pattern: Regular expression on the image file name with the named groups ``case`` and, for several
            channels, ``channel``.
        channel_names: Channel number to name (``CT`` switches nnU-Net's CT normalisation on), default from the source.
            For ``bids`` the name is the suffix of the channel's images, with entities if needed, such as
            ``ce-gadolinium_T1w``.
        label_names: Label name to value, or to a list of values for regions, default from the source.
        regions_class_order: For regions, nnU-Net's order of values: larger regions first, each with a value that no
            smaller one has.
        series: For DICOM, maps a channel name to the rule that chooses its series; see
            :class:`~nnunet_jobs.contract.steps.series_rules.SeriesRule`. One channel needs no rule if a study has one CT, MR
            or PT series.
        label_rules: For labels from DICOM SEG and RTSTRUCT, maps a label name to names or regular expressions of
            segments, beside the rules ``skip``, ``priority`` and ``threshold``; see
            :class:`~nnunet_jobs.contract.steps.label_rules.LabelRules`.
        group_pattern: Regular expression on the case id whose group 1 (or ``group``) is the patient.
        holdout_fraction: Share of patients never trained on, chosen by hash; patients do not move when data is added.
        holdout_cases: Case ids that are always hold-out, regardless of the hash.
        transfer: ``auto`` makes a reflink if the file system can, else a hard link when the source file is
            write-protected (editing it in place would edit the registered case too), else a copy; or ``reflink``,
            ``hardlink``, ``copy``.
        on_changed: ``update`` or ``fail`` when a known case's content changed.
        on_removed: ``keep``, ``drop`` or ``fail`` when a known case is no longer in the source.
        spacing_tolerance: Relative tolerance of the label's spacing, and of the files' positions over 100 voxels.
            Spacings of channels must agree within 1e-5, as nnU-Net's readers require.
    """

    step: ClassVar[str] = "register"

    dataset_id: int
    name: str
    source: str
    layout: str = "auto"
    images: str = "images"
    labels: str = "labels"
    mapping: str | None = None
    bids_label: str | None = None
    rename: bool = False
    case_pattern: str = r"(?P<case>.+?)(?:_(?P<channel>\d{4}))?\.(?:nii(?:\.gz)?|mha|nrrd|png|bmp|tiff?)"
    channel_names: dict[str, str] | None = None
    label_names: dict[str, Any] | None = None
    regions_class_order: list[int] | None = None
    series: dict[str, Any] | None = None
    label_rules: dict[str, Any] | None = None
    group_pattern: str | None = None
    holdout_fraction: float = 0.1
    holdout_cases: list[str] = field(default_factory=list)
    transfer: str = "auto"
    on_changed: str = "update"
    on_removed: str = "keep"
    spacing_tolerance: float = 1e-3

    def _check(self) -> None:
        self.require(1 <= self.dataset_id <= 99_999, "dataset_id", "must be between 1 and 99999")
        if self.layout not in LAYOUTS:  # entry points are looked for only then: it takes some milliseconds
            known = (*LAYOUTS, *third_party.found(LAYOUTS_GROUP))
            self.require(self.layout in known, "layout", f"must be {', '.join(known[:-1])} or {known[-1]}")
        self.require(self.mapping is None or self.layout in ("auto", "csv"), "mapping", "is for layout csv; remove it or set layout to csv")
        self.require(self.layout != "csv" or bool(self.mapping), "mapping", "must name the CSV file below the source, for layout csv")
        self.require(self.bids_label is None or self.layout in ("auto", "bids"), "bids_label", "is for layout bids; remove it")
        self.require(0 <= self.holdout_fraction < 1, "holdout_fraction", "must be at least 0 and less than 1")
        self.require(self.transfer in ("auto", "reflink", "hardlink", "copy"), "transfer", "must be auto, reflink, hardlink or copy")
        self.require(self.on_changed in ("update", "fail"), "on_changed", "must be update or fail")
        self.require(self.on_removed in ("keep", "drop", "fail"), "on_removed", "must be keep, drop or fail")
        if self.series is not None:
            try:
                channel_rules(self.series, self.channel_names)
            except ValueError as error:
                raise ConfigError(where=f"{self.step}:", field="series", value=self.series, problem=str(error)) from error
        try:
            rules = LabelRules.parse(self.label_rules)
            if self.label_names is not None and self.label_rules:
                rules.check_labels(self.label_names)
        except ValueError as error:
            raise ConfigError(where=f"{self.step}:", field="label_rules", value=self.label_rules, problem=str(error)) from error
        require_case_pattern(self, self.case_pattern)
        if self.group_pattern:
            compiled = compile_pattern(self, "group_pattern", self.group_pattern)
            self.require(compiled.groups >= 1, "group_pattern", "needs a group (...) that captures the patient")
