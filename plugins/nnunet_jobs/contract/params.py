"""The five steps' parameters: one frozen dataclass each, shared by an operator and its step, checked on both sides."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nnunet_jobs.contract.configurations import CONFIGURATIONS, STOCK_PLANNERS, check_custom, check_names
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.label_rules import LabelRules
from nnunet_jobs.contract.segment_codes import parse_segment_codes
from nnunet_jobs.contract.series_rules import channel_rules, parse_rules
from nnunet_jobs.contract.step_params import StepParams

LAYOUTS = ("auto", "nnunet", "nnunet_v1", "decathlon", "bids", "csv", "folders", "dicom")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterParams(StepParams):
    """Take a dataset into nnUNet_raw.

    Attributes:
        dataset_id: nnU-Net's number, 1 to 99999.
        name: The rest of the folder name.
        source: Folder to read, or a .zip, .tar, .tar.gz or .tgz of one, below ``input_roots``.
        layout: ``nnunet`` (raw v2), ``nnunet_v1`` (raw v1, ``TaskXXX``), ``decathlon`` (MSD), ``bids`` (labels in
            derivatives), ``csv`` (a table, see ``mapping``), ``folders`` (images and labels), ``dicom`` (a tree of
            DICOM files), ``auto`` looks.
        images: For ``folders``, the sub-folder with the images.
        labels: For ``folders``, the sub-folder with the labels; for ``bids``, the pipeline's folder where several have
            labels.
        mapping: For ``csv``, the table below the source: columns ``case``, ``image`` (or one for each channel, by name
            or number), ``label`` (empty for test images), and perhaps ``group`` (patient) and ``split`` (``train``,
            ``holdout``, ``test``).
        bids_label: For ``bids``, which label file is meant: its suffix, with entities where it takes them, such as
            ``label-lesion_mask``.
        rename: Give ids that file systems or nnU-Net cannot carry a safe one, and keep who is who in a file for its
            owner only; else they are refused.
        case_pattern: Regular expression on the image file name with the named groups ``case`` and, for several
            channels, ``channel``.
        channel_names: Channel number to name (``CT`` switches nnU-Net's CT normalisation on), default from the source.
            For ``bids`` the name is the suffix of the channel's images, with entities where it takes them, such as
            ``ce-gadolinium_T1w``.
        label_names: Label name to value, or to a list of values for regions, default from the source.
        regions_class_order: For regions, nnU-Net's order of values: larger regions first, each with a value that no
            smaller one has.
        series: For DICOM, channel name to the rule that chooses its series; see
            :class:`~nnunet_jobs.contract.series_rules.SeriesRule`. One channel needs none where a study has one CT, MR
            or PT series.
        label_rules: For labels from DICOM SEG and RTSTRUCT, label name to names or regular expressions of segments,
            beside the rules ``skip``, ``priority`` and ``threshold``; see
            :class:`~nnunet_jobs.contract.label_rules.LabelRules`.
        group_pattern: Regular expression on the case id whose group 1 (or ``group``) is the patient.
        holdout_fraction: Share of patients never trained on, chosen by hash, stable as data grows.
        holdout_cases: Case ids that are hold-out whatever the hash says.
        transfer: ``auto`` takes a reflink where the file system can, else a hard link when the source file is
            write-protected (editing it in place would edit the registered case too), else a copy; or ``reflink``,
            ``hardlink``, ``copy``.
        on_changed: A known case's content changed: ``update`` or ``fail``.
        on_removed: ``keep``, ``drop`` or ``fail`` when a known case is no longer in the source.
        spacing_tolerance: Relative tolerance of the label's spacing, and of where the files lie over 100 voxels.
            Spacings of channels must agree within 1e-5, as nnU-Net's readers want it.
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
        self.require(self.layout in LAYOUTS, "layout", f"must be {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}")
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
            compiled = _compiled(self, "group_pattern", self.group_pattern)
            self.require(compiled.groups >= 1, "group_pattern", "needs a group (...) that captures the patient")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessParams(StepParams):
    """Fingerprint, plan, preprocess and split one or several registered datasets.

    Attributes:
        datasets: Dataset ids or full names.
        configurations: Configurations of the plans, custom ones included.
        planner: Name of any nnU-Net experiment planner class.
        gpu_memory_gb: The planner's GPU memory target.
        plans: Name of the plans; the planner's own name when empty.
        custom_configurations: Name to a plans entry, such as ``{"2d_tiny": {"inherits_from": "2d", "batch_size":
            16}}``.
        replan: ``auto`` keeps valid plans, ``always`` and ``never`` say so.
        folds: Number of splits.
        seed: Seed of the splits.
        processes: Cases at once; 0 lets cores and memory decide.
    """

    step: ClassVar[str] = "preprocess"

    datasets: list[str | int]
    configurations: list[str] = field(default_factory=lambda: ["2d", "3d_fullres"])
    planner: str = "ExperimentPlanner"
    gpu_memory_gb: float | None = None
    plans: str | None = None
    custom_configurations: dict[str, Any] = field(default_factory=dict)
    replan: str = "auto"
    folds: int = 5
    seed: int = 12345
    processes: int = 0

    def _check(self) -> None:
        self.require(bool(self.datasets), "datasets", "name at least one dataset")
        self.require(bool(self.configurations), "configurations", "name at least one configuration")
        # What a planner of the site's own makes, or plans that are kept, is not known here.
        stock = self.replan != "never" and self.planner in STOCK_PLANNERS
        try:
            check_custom(self.custom_configurations, CONFIGURATIONS if stock else None)
            check_names(self.configurations, (*CONFIGURATIONS, *self.custom_configurations) if stock else ())
        except ConfigError as error:
            raise error.told(where=f"{self.step}:") from None
        self.require(bool(_NAME.fullmatch(self.planner)), "planner", "must be a Python class name")
        self.require(self.plans is None or bool(_NAME.fullmatch(self.plans)), "plans", "must be a plain name")
        self.require(self.replan in ("auto", "always", "never"), "replan", "must be auto, always or never")
        self.require(self.folds >= 2, "folds", "must be 2 or more")
        self.require(self.processes >= 0, "processes", "must be 0 or more")
        self.require(self.gpu_memory_gb is None or self.gpu_memory_gb > 0, "gpu_memory_gb", "must be more than 0 GB")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainParams(StepParams):
    """Train one fold of one configuration.

    Attributes:
        dataset: Dataset id or full name, such as ``4`` or ``Dataset004_Hippocampus``.
        configuration: Configuration of the plans.
        fold: Number of the fold, from 0, or ``all``.
        version: Preprocessed version from PreprocessOperator's result; the current one when empty.
        trainer: Name of any trainer class of nnU-Net or of your own.
        plans: Name of the plans.
        epochs: Number of epochs; the trainer's own when empty.
        iterations: Training iterations in an epoch; the trainer's own when empty.
        val_iterations: Validation iterations in an epoch; the trainer's own when empty.
        optimizer: ``sgd`` or ``adamw``; the trainer's own when empty.
        initial_lr: Initial learning rate of the polynomial schedule.
        mirroring: False trains (and predicts) without mirroring; None leaves it to the trainer.
        pretrained: Checkpoint file, or model id of this workspace, to fine-tune from. With equal labels and
            architecture the full state is loaded, else all that fits and the rest is named in the log.
        npz: Also save validation probabilities, needed for ensembles.
        checkpoint_every: Epochs between verified checkpoints.
        early_stop: Stop after this many epochs without a better smoothed Dice.
        seed: Seed of Python, NumPy and torch; None leaves them random.
        plots: nnU-Net's progress.png after each epoch, about one second each.
    """

    step: ClassVar[str] = "train"

    dataset: str | int
    configuration: str
    fold: int | str
    version: str | None = None
    trainer: str = "nnUNetTrainer"
    plans: str = "nnUNetPlans"
    epochs: int | None = None
    iterations: int | None = None
    val_iterations: int | None = None
    optimizer: str | None = None
    initial_lr: float | None = None
    mirroring: bool | None = None
    pretrained: str | None = None
    npz: bool = False
    checkpoint_every: int = 1
    early_stop: int | None = None
    seed: int | None = None
    plots: bool = False

    def _check(self) -> None:
        fold_fits = self.fold == "all" or (isinstance(self.fold, int) and self.fold >= 0) or str(self.fold).isdigit()
        self.require(fold_fits, "fold", "must be 0 or more, or 'all'")
        if isinstance(self.fold, str) and self.fold.isdigit():
            object.__setattr__(self, "fold", int(self.fold))
        for name in ("epochs", "iterations", "val_iterations", "checkpoint_every", "early_stop"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, "must be 1 or more")
        self.require(bool(_NAME.fullmatch(self.trainer)), "trainer", "must be a Python class name that begins with a letter")
        self.require(bool(_NAME.fullmatch(self.plans)), "plans", "must be a plain name")
        path_fits = self.pretrained is None or "/" not in self.pretrained or self.pretrained.startswith("/")
        self.require(path_fits, "pretrained", "must be a model id or an absolute path")
        self.require(self.optimizer in (None, "sgd", "adamw"), "optimizer", "must be sgd, adamw or empty")
        self.require(self.seed is None or 0 <= self.seed < 2**32, "seed", f"must be 0 to {2**32 - 1}")
        lr_fits = self.initial_lr is None or (math.isfinite(self.initial_lr) and self.initial_lr > 0)
        self.require(lr_fits, "initial_lr", "must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class FindBestParams(StepParams):
    """Choose the best configuration or ensemble of one model, write its card, promote it when told to.

    Attributes:
        dataset: Dataset id or full name, such as ``4`` or ``Dataset004_Hippocampus``.
        model: Model id from TrainFoldOperator's result; the newest complete one when empty.
        configurations: Configurations to compare; all trained ones when empty.
        folds: Folds that must be complete; or ``["all"]``, which takes the one configuration whose fold ``all`` is
            trained as it is, without a cross-validation, for ``promote`` ``always`` or ``never``.
        trainer: Trainer class of the model.
        plans: Name of its plans.
        ensembles: Also try pairs of configurations.
        repair: Run the validation where its output is missing, instead of refusing.
        promote: ``never``, ``always``, or ``if_better`` (hold-out Dice, else cross-validation Dice, above the
            champion's). Where nothing but fold ``all`` is trained, ``always`` takes it as if ``folds`` were
            ``["all"]``.
        recipe: Free text kept in the card; the DAG builder puts the hash of its settings here to find finished work.
    """

    step: ClassVar[str] = "find_best_config"

    dataset: str | int
    model: str | None = None
    configurations: list[str] = field(default_factory=list)
    folds: list[int | str] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    trainer: str = "nnUNetTrainer"
    plans: str = "nnUNetPlans"
    ensembles: bool = True
    repair: bool = True
    promote: str = "if_better"
    recipe: str | None = None

    def _check(self) -> None:
        self.require(bool(self.folds), "folds", "name at least one fold")
        object.__setattr__(self, "folds", [int(fold) if str(fold).isdigit() else fold for fold in self.folds])
        fit = self.folds == ["all"] or all(isinstance(fold, int) and fold >= 0 for fold in self.folds)
        self.require(fit, "folds", "name numbered folds, 0 and up, or 'all' alone: it has no validation that others could be compared with")
        fix = "fold 'all' has no validation to compare by; set promote to always or never, or name numbered folds"
        self.require(self.folds != ["all"] or self.promote != "if_better", "promote", fix)
        self.require(self.promote in ("never", "always", "if_better"), "promote", "must be never, always or if_better")


HELD_OUT = ("holdout", "imagesTs")
"""Cases of the dataset itself, by the word that names them."""
FAST = ("tiles", "resampling", "half", "compile")
"""What prediction may do faster where stock nnU-Net's exact bytes are not needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictParams(StepParams):
    """Predict cases with a selected model.

    Attributes:
        dataset: Dataset whose model predicts; id or full name.
        model: Model id; the promoted one when empty.
        cases: ``holdout`` or ``imagesTs`` of the dataset, a folder below ``input_roots`` (images, or DICOM studies), or
            a list of ``{"case": id, "images": [one path a channel]}`` or of single paths (one channel). In a folder of
            images each is called ``<case>_<channel, 4 digits><ending>``, such as ``liver_007_0000.nii.gz``, with one
            channel too.
        case_pattern: For a folder of images that are called otherwise: regular expression on the file name with the
            groups ``case`` and, for several channels, ``channel`` (a number), as for registration.
        on_empty: ``fail`` or ``skip`` when there is no case at all: ``cases=[]``, or nothing in the folder.
        series: For DICOM studies, channel name to rule, instead of those that the dataset was registered with.
        output: Folder below ``output_roots``. Each model's predictions are kept below its ``models``; the link
            ``newest`` and links beside it show what the latest run's model has predicted.
        part: Which of the ``parts`` this job predicts, from 0.
        parts: Number of jobs that share the cases; each gets about the same number of voxels.
        max_failed: Cases that may fail; beyond it the job fails when it has predicted the others. Cases of other parts
            that have ended count too. No limit when empty, but a job of which no case can be predicted always fails.
        folds: Override of the model's folds.
        mirroring: Mirror the input for prediction; False is faster and a little worse.
        step_size: Step size of the sliding window.
        postprocessing: Apply what FindBestConfigOperator selected.
        probabilities: Also save softmax files.
        overwrite: Predict again what is already done by content.
        fast: What may differ a little from stock nnU-Net's bytes for speed, any of ``tiles`` (several windows at once),
            ``resampling`` (of the logits, by torch), ``half`` (weights, on GPUs) and ``compile`` (torch.compile; pays
            for many cases).
        contact_sheet: Also write ``contact-sheet.html``, a page with a picture of each case.
        dicom_seg: Also write ``<case>.seg.dcm``, for cases from a folder of DICOM studies.
        segment_codes: What each label is, as ``{"liver": ["10200004", "SCT", "Liver"]}``; see
            :func:`~nnunet_jobs.contract.segment_codes.parse_segment_codes`.
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


def require_case_pattern(params: StepParams, pattern: str) -> None:
    """Judge the field ``case_pattern``.

    Raises:
        ConfigError: It is no regular expression, or has no group ``case``.
    """
    params.require("case" in _compiled(params, "case_pattern", pattern).groupindex, "case_pattern", "needs a named group (?P<case>...)")


def _compiled(params: StepParams, name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(where=f"{params.step}:", field=name, value=pattern, problem=f"not a regular expression: {error}") from error


STEPS: dict[str, type[StepParams]] = {
    params.step: params for params in (RegisterParams, PreprocessParams, TrainParams, FindBestParams, PredictParams)
}
