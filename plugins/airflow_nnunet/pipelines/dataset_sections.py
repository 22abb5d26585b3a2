"""Defines every field of ``include/datasets/*.yaml`` with type, default and meaning. The schema's page is made from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from airflow_nnunet.settings.yaml_files import Section
from nnunet_jobs.contract.steps.params import LAYOUTS

Fold = Annotated[int, Field(ge=0)] | Literal["all"]


class DatasetSection(Section):
    """Where the dataset comes from and what it is called in nnU-Net."""

    id: int = Field(description="nnU-Net's dataset number, 1 to 99999.")
    name: str = Field(description="Rest of the folder name: `Hippocampus` makes `Dataset004_Hippocampus`.")
    source: str = Field(
        description="Absolute folder to read, or a .zip, .tar, .tar.gz or .tgz of one, below `input_roots`. A Jinja template is allowed."
    )
    layout: str = Field(
        default="auto",
        json_schema_extra={"enum": list(LAYOUTS)},  # for the page; the contract checks the value
        description="`nnunet` (raw v2), `nnunet_v1` (raw v1, `TaskXXX`), `decathlon` (MSD), `bids` (labels in derivatives), "
        "`csv` (a table), `folders` (images and labels), `dicom` (a tree of DICOM files), or one that another package adds; "
        "`auto` recognises it.",
    )
    images: str = Field(default="images", description="Sub-folder of the images, for `folders`.")
    labels: str = Field(
        default="labels", description="Sub-folder of the labels, for `folders`; for `bids`, that of the pipeline if several have labels."
    )
    mapping: str | None = Field(
        default=None,
        description="For `csv`: the table below the source, with the columns `case`, `image` (or one for each channel, by name or number), "
        "`label` (empty for test images), and optionally `group` (patient) and `split` (`train`, `holdout`, `test`).",
    )
    bids_label: str | None = Field(
        default=None,
        description="For `bids`: name of the label files, such as `dseg` or `label-lesion_mask`; found automatically when empty.",
    )
    rename: bool = Field(
        default=False, description="Replace case ids that file systems or nnU-Net cannot use by safe ones, instead of refusing them."
    )
    case_pattern: str | None = Field(
        default=None, description="Regular expression on the image file name with the groups `case` and, for several channels, `channel`."
    )
    channel_names: dict[str, str] | None = Field(
        default=None,
        description="Name of each channel number; `CT` switches CT normalisation on. For `bids`, suffix of the images, such as `T1w`.",
    )
    label_names: dict[str, Any] | None = Field(default=None, description="Value of each label name, or a list of values for regions.")
    regions_class_order: list[int] | None = Field(default=None, description="For regions: nnU-Net's order of values, larger regions first.")
    series: dict[str, Any] | None = Field(
        default=None,
        description="For DICOM: for each channel name the rule that chooses its series: `modality`, `description` and `protocol` "
        "(regular expressions), `tags` (an expression or number for a DICOM keyword), `each` (every matching series is a case).",
    )
    label_rules: dict[str, Any] | None = Field(
        default=None,
        description="For labels from DICOM SEG and RTSTRUCT: for each label name the names or regular expressions of segments, which are "
        "merged. `skip` lists segments to leave out, `priority` orders labels where segments overlap, `threshold` (0.5) is for "
        "fractional segments. A segment named like a label needs no rule.",
    )
    group_pattern: str | None = Field(default=None, description="Regular expression on the case id whose group is the patient.")
    holdout_fraction: float = Field(
        default=0.1, description="Share of patients that are never used for training. It is stable as data grows."
    )
    holdout_cases: list[str] = Field(default=[], description="Case ids that are always hold-out.")
    transfer: Literal["auto", "reflink", "hardlink", "copy"] = Field(default="auto", description="How files are put into nnUNet_raw.")
    on_changed: Literal["update", "fail"] = Field(default="update", description="What to do when a known case's content changed.")
    on_removed: Literal["keep", "drop", "fail"] = Field(
        default="keep", description="What to do when a known case is no longer in the source."
    )
    spacing_tolerance: float = Field(
        default=1e-3, description="Relative tolerance of the label's spacing and position; spacings of channels must agree within 1e-5."
    )


class PreprocessSection(Section):
    """How nnU-Net plans and preprocesses."""

    configurations: list[str] = Field(default=["2d", "3d_fullres"], description="Configurations to train, custom ones included.")
    planner: str = Field(default="ExperimentPlanner", description="Any nnU-Net experiment planner class.")
    gpu_memory_gb: float | None = Field(default=None, description="The planner's GPU memory target in GB.")
    plans: str | None = Field(default=None, description="Name of the plans; the planner's own when empty.")
    custom_configurations: dict[str, dict[str, Any]] = Field(
        default={}, description="Plans entry of each name, usually with `inherits_from`."
    )
    replan: Literal["auto", "always", "never"] = Field(default="auto", description="`auto` keeps plans while they remain valid.")
    folds: int = Field(default=5, description="Number of cross-validation folds to split into, 2 or more.")
    seed: int = Field(default=12345, description="Seed of the splits.")
    processes: int = Field(default=0, description="Number of cases at once; 0 chooses it by cores and memory.")


class TrainSection(Section):
    """How each fold is trained. Empty numbers keep nnU-Net's own."""

    trainer: str = Field(default="nnUNetTrainer", description="Any nnU-Net or user trainer class.")
    folds: list[Fold] | None = Field(
        default=None,
        min_length=1,
        description="Folds to train; every fold of the split when empty. `[all]` alone trains on every case, without validation; "
        "`select.promote` must then be `always` or `never`.",
    )
    epochs: int | None = Field(default=None, description="Number of epochs.")
    iterations: int | None = Field(default=None, description="Training iterations an epoch.")
    val_iterations: int | None = Field(default=None, description="Validation iterations an epoch.")
    optimizer: Literal["sgd", "adamw"] | None = Field(default=None, description="Optimizer to use instead of the trainer's own.")
    initial_lr: float | None = Field(default=None, description="Start of the polynomial learning rate schedule.")
    mirroring: bool | None = Field(default=None, description="false trains and predicts without mirroring.")
    pretrained: str | None = Field(default=None, min_length=1, description="Checkpoint file or model id to fine-tune from.")
    npz: bool | None = Field(
        default=None, description="Save validation probabilities; if empty, they are saved when ensembles are compared."
    )
    checkpoint_every: int = Field(default=1, description="Epochs between verified checkpoints.")
    early_stop: int | None = Field(default=None, description="Stop after this many epochs without a better smoothed Dice.")
    seed: int | None = Field(default=None, description="Seed of Python, NumPy and torch.")
    plots: bool = Field(default=False, description="nnU-Net's progress.png after each epoch, about one second each.")


class SelectSection(Section):
    """How the best configuration is chosen and promoted."""

    ensembles: bool = Field(default=True, description="Also compare pairs of configurations.")
    repair: bool = Field(default=True, description="Run a fold's validation where its output is missing, instead of refusing.")
    promote: Literal["if_better", "if_not_worse", "ask", "never", "always"] = Field(
        default="if_better",
        description="When the new model is promoted: `if_better` than the promoted one beyond chance, `if_not_worse` than the last one "
        "that a person approved, `ask` a person, `never`, `always`.",
    )
    gate: dict[str, float | None] = Field(
        default={},
        description="Further fields of the promotion policy: `error_budget_per_year`, `runs_per_year`, `min_gain`, `max_label_loss`, "
        "`margin`, `min_dice`, `seed_spread`.",
    )


class EvaluateSection(Section):
    """How predictions are compared with references, in cross-validation and on the hold-out."""

    tolerance_mm: float | dict[str, float] = Field(
        default=1.0,
        description="Distance in mm up to which a surface counts as right in the normalized surface Dice (NSD): one number, or numbers by "
        "label name; labels that are not named have 1.0. The page Metrics defines all of them.",
    )


class PredictSection(Section):
    """What is predicted with the promoted model once it is chosen."""

    cases: str = Field(
        default="holdout",
        description="`holdout`, `imagesTs`, an absolute folder below `input_roots` (DICOM studies, or images called "
        "`<case>_0000.nii.gz`, with one channel too), or `none`.",
    )
    case_pattern: str | None = Field(
        default=None,
        description="For a folder of images with other names: regular expression on the file name with the groups `case` and, for several "
        "channels, `channel`.",
    )
    on_empty: Literal["fail", "skip"] = Field(default="fail", description="What the task does when the folder is empty.")
    output: str | None = Field(
        default=None,
        description="Absolute folder below `output_roots`; `<first output root>/<dataset>` when empty. Each model's predictions are kept "
        "below its `models`; links show the newest.",
    )
    parts: int = Field(default=1, ge=1, description="Number of parallel tasks over which the cases are split, by voxels.")
    max_failed: int | None = Field(
        default=None,
        ge=0,
        description="Number of cases that may fail. With more, the task fails after it has predicted the others. No limit if empty.",
    )
    mirroring: bool = Field(default=True, description="false is faster and a little worse.")
    step_size: float = Field(default=0.5, description="Step size of the sliding window.")
    postprocessing: bool = Field(default=True, description="Apply what the selection chose.")
    probabilities: bool = Field(default=False, description="Also save softmax files.")
    fast: list[str] = Field(
        default=[],
        description="Faster methods whose results differ slightly from nnU-Net's: any of `tiles`, `resampling`, `half`, `compile`.",
    )
    contact_sheet: bool = Field(default=True, description="Also write `contact-sheet.html`, a page with a picture of each case.")
    series: dict[str, Any] | None = Field(
        default=None, description="For DICOM studies: a rule for each channel name, instead of those that the dataset was registered with."
    )
    dicom_seg: bool = Field(default=False, description="Also write a DICOM SEG for each case; `cases` must be a folder of DICOM studies.")
    segment_codes: dict[str, Any] = Field(
        default={},
        description="Code of each label in the DICOM SEG: `[value, scheme, meaning]` such as `[10200004, SCT, Liver]` (quote the number), "
        "or `category` and `type` of that form.",
    )


class ResourcesSection(Section):
    """What one training or prediction needs of its host."""

    device: Literal["auto", "cuda", "cpu"] = Field(default="auto", description="`cuda` requires a GPU, `auto` uses one if there is one.")
    num_gpus: int = Field(default=1, ge=1, description="Number of GPUs that a training uses.")
    gpu_memory_mib: int | None = Field(default=None, description="Memory in MiB to reserve on each GPU; whole GPUs when empty.")
    cpus: int = Field(default=0, description="Number of cores that a job uses; 0 divides all of them evenly.")
    memory_mib: int | None = Field(default=None, description="Limit of a job's memory in MiB.")
    shm_mib: int = Field(default=8192, description="Shared memory in MiB of a job in a container.")
    hang_s: float = Field(default=300.0, description="Least number of seconds without progress after which a job counts as hanging.")
    grace_s: float = Field(default=120.0, description="Seconds that a stopped job has to save its work.")
