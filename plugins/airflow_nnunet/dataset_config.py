"""The schema of ``include/datasets/*.yaml``: one file describes one dataset's pipeline, checked before a DAG is built from it.

Exceptions::

    ValueError
    └── DatasetConfigError    one or several files are wrong; the message names file, line, field, value and mend
"""

from __future__ import annotations

import difflib
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.params import FindBestParams, PredictParams, PreprocessParams, RegisterParams, TrainParams
from nnunet_jobs.contract.spec import Resources
from nnunet_jobs.contract.workspace import dataset_name

Fold = Annotated[int, Field(ge=0)] | Literal["all"]
CASCADE = "3d_cascade_fullres"
_HELD_OUT = ("holdout", "imagesTs")


class DatasetConfigError(ValueError):
    """A dataset file is wrong. The message names file, line, field, value and mend."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DatasetSection(_Section):
    """Where the dataset comes from and what it is called in nnU-Net."""

    id: int = Field(description="nnU-Net's dataset number, 1 to 99999.")
    name: str = Field(description="Rest of the folder name: `Hippocampus` makes `Dataset004_Hippocampus`.")
    source: str = Field(description="Absolute folder to read, below `input_roots`. A Jinja template is allowed.")
    layout: Literal["auto", "nnunet", "decathlon", "folders", "dicom"] = Field(
        default="auto",
        description="`nnunet` (raw v2), `decathlon` (MSD), `folders` (images and labels), `dicom` (a tree of DICOM files); `auto` looks.",
    )
    images: str = Field(default="images", description="Sub-folder of the images, for `folders`.")
    labels: str = Field(default="labels", description="Sub-folder of the labels, for `folders`.")
    case_pattern: str | None = Field(
        default=None, description="Regular expression on the image file name with the groups `case` and, for several channels, `channel`."
    )
    channel_names: dict[str, str] | None = Field(default=None, description="Channel number to name; `CT` switches CT normalisation on.")
    label_names: dict[str, Any] | None = Field(default=None, description="Label name to value, or to a list of values for regions.")
    regions_class_order: list[int] | None = Field(default=None, description="For regions: nnU-Net's order of values.")
    series: dict[str, Any] | None = Field(
        default=None,
        description="For DICOM: channel name to the rule that chooses its series, of `modality`, `description` and `protocol` (regular "
        "expressions), `tags` (DICOM keyword to expression or number), `each` (every matching series is a case).",
    )
    label_rules: dict[str, Any] | None = Field(
        default=None,
        description="For labels from DICOM SEG and RTSTRUCT: label name to names or regular expressions of segments, which fuse; "
        "`skip` lists segments to leave out, `priority` the labels that win where two overlap, first wins; `threshold` (0.5) is for "
        "fractional segments. A segment named like a label needs no rule.",
    )
    group_pattern: str | None = Field(default=None, description="Regular expression on the case id whose group is the patient.")
    holdout_fraction: float = Field(default=0.1, description="Share of patients never trained on, stable as data grows.")
    holdout_cases: list[str] = Field(default=[], description="Case ids that are hold-out whatever the hash says.")
    transfer: Literal["auto", "reflink", "hardlink", "copy"] = Field(default="auto", description="How files get into nnUNet_raw.")
    on_changed: Literal["update", "fail"] = Field(default="update", description="What to do when a known case's content changed.")
    on_removed: Literal["keep", "drop", "fail"] = Field(default="keep", description="What to do when a known case left the source.")
    spacing_tolerance: float = Field(default=1e-3, description="Relative tolerance of spacing and affine between channels and label.")


class PreprocessSection(_Section):
    """How nnU-Net plans and preprocesses."""

    configurations: list[str] = Field(default=["2d", "3d_fullres"], description="Configurations to train, custom ones included.")
    planner: str = Field(default="ExperimentPlanner", description="Any nnU-Net experiment planner class.")
    gpu_memory_gb: float | None = Field(default=None, description="The planner's GPU memory target in GB.")
    plans: str | None = Field(default=None, description="Name of the plans; the planner's own when empty.")
    custom_configurations: dict[str, dict[str, Any]] = Field(default={}, description="Name to plans entry, usually with `inherits_from`.")
    replan: Literal["auto", "always", "never"] = Field(default="auto", description="`auto` keeps plans while they remain valid.")
    folds: int = Field(default=5, description="Number of cross-validation folds to split into, 2 or more.")
    seed: int = Field(default=12345, description="Seed of the splits.")
    processes: int = Field(default=0, description="Cases at once; 0 lets cores and memory decide.")


class TrainSection(_Section):
    """How each fold is trained. Empty numbers leave nnU-Net's own."""

    trainer: str = Field(default="nnUNetTrainer", description="Any nnU-Net or user trainer class.")
    folds: list[Fold] | None = Field(default=None, description="Folds to train; every fold of the split when empty.")
    epochs: int | None = Field(default=None, description="Number of epochs.")
    iterations: int | None = Field(default=None, description="Training iterations an epoch.")
    val_iterations: int | None = Field(default=None, description="Validation iterations an epoch.")
    optimizer: Literal["sgd", "adamw"] | None = Field(default=None, description="In place of the trainer's own.")
    initial_lr: float | None = Field(default=None, description="Start of the polynomial learning rate schedule.")
    mirroring: bool | None = Field(default=None, description="false trains and predicts without mirroring.")
    pretrained: str | None = Field(default=None, description="Checkpoint file or model id to fine-tune from.")
    npz: bool | None = Field(default=None, description="Save validation probabilities; true when ensembles are compared, unless set.")
    checkpoint_every: int = Field(default=1, description="Epochs between verified checkpoints.")
    early_stop: int | None = Field(default=None, description="Stop after this many epochs without a better smoothed Dice.")
    seed: int | None = Field(default=None, description="Of Python, NumPy and torch.")
    plots: bool = Field(default=False, description="nnU-Net's progress.png after each epoch, about one second each.")


class SelectSection(_Section):
    """How the best configuration is chosen and promoted."""

    ensembles: bool = Field(default=True, description="Also compare pairs of configurations.")
    repair: bool = Field(default=True, description="Run a fold's validation where its output is missing, instead of refusing.")
    promote: Literal["never", "always", "if_better"] = Field(default="if_better", description="When the link moves to the new model.")


class PredictSection(_Section):
    """What is predicted with the promoted model once it is chosen."""

    cases: str = Field(default="holdout", description="`holdout`, `imagesTs`, an absolute folder below `input_roots`, or `none`.")
    output: str | None = Field(
        default=None, description="Absolute folder below `output_roots`; `<first output root>/<dataset>` when empty."
    )
    parts: int = Field(default=1, ge=1, description="Over how many parallel tasks the cases are split.")
    mirroring: bool = Field(default=True, description="false is faster and a little worse.")
    step_size: float = Field(default=0.5, description="Of the sliding window.")
    postprocessing: bool = Field(default=True, description="Apply what the selection chose.")
    probabilities: bool = Field(default=False, description="Also save softmax files.")
    series: dict[str, Any] | None = Field(
        default=None, description="For DICOM studies: channel name to rule, in place of those that the dataset was registered with."
    )
    dicom_seg: bool = Field(default=False, description="Also write a DICOM SEG for each case; `cases` must be a folder of DICOM studies.")
    segment_codes: dict[str, Any] = Field(
        default={},
        description="What each label is, in the DICOM SEG: label name to `[value, scheme, meaning]` such as `[10200004, SCT, Liver]` "
        "(quote the number), or to `category` and `type` of that form.",
    )


class ResourcesSection(_Section):
    """What one training or prediction needs of its host."""

    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="`cuda` insists on a GPU, `auto` takes one where there is one."
    )
    num_gpus: int = Field(default=1, ge=1, description="GPUs a training uses.")
    gpu_memory_mib: int | None = Field(default=None, description="Memory to reserve on each GPU; whole GPUs when empty.")
    cpus: int = Field(default=0, description="Cores a job uses; 0 shares all of them fairly.")
    memory_mib: int | None = Field(default=None, description="Limit of a job's memory.")
    hang_s: float = Field(default=300.0, description="Floor of the hang watch in seconds.")
    grace_s: float = Field(default=120.0, description="Seconds a stopped job has to save its work.")


class TrainingConfig(_Section):
    """One file of ``include/datasets``, or what a Python author passes to the builder."""

    dag_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.\-]{1,200}$", description="`nnunet_<file name>` when empty.")
    description: str | None = Field(default=None, description="One line for the DAG list.")
    dataset: DatasetSection
    preprocess: PreprocessSection = PreprocessSection()
    train: TrainSection = TrainSection()
    select: SelectSection = SelectSection()
    predict: PredictSection = PredictSection()
    schedule: str | None = Field(default=None, description="Cron expression or preset such as `@daily`; only by hand when empty.")
    owner: str = Field(default="nnunet", description="Shown in the DAG list.")
    team: str | None = Field(default=None, description="Becomes the tag `team:<name>`.")
    tags: list[str] = Field(default=[], description="More tags for the DAG list.")
    pool: str = Field(default="gpu", description="Airflow pool of trainings and predictions.")
    priority: int = Field(default=1, description="Airflow priority weight; higher goes first in the pool.")
    retries: int = Field(default=2, ge=0, description="Retries of failures that a retry can mend.")
    resources: ResourcesSection = ResourcesSection()
    nnunet_conn_id: str | None = Field(default=None, description="Connection with another workspace than section [nnunet]'s.")
    deferrable: bool = Field(default=True, description="false holds a worker slot while a job runs.")

    @model_validator(mode="after")
    def _check_with_contract(self) -> TrainingConfig:
        """The contract's own checks, so that a wrong number is an import error and not a failed run a night later."""
        _checked("dataset", dataset_name, self.dataset.id, self.dataset.name)
        _checked("dataset", RegisterParams, **self.register_fields())
        _checked("preprocess", PreprocessParams, datasets=[self.dataset_name], **self.preprocess.model_dump())
        probe = {"dataset": self.dataset_name, "configuration": self.preprocess.configurations[0]}
        _checked("train", TrainParams, **probe, fold=0, **self.train_fields())
        numbered = [fold for fold in self.train_folds if isinstance(fold, int)]
        _checked("select", FindBestParams, dataset=self.dataset_name, folds=numbered or [0], **self.select.model_dump())
        rest = self.predict.model_dump(exclude={"cases", "output", "parts"})
        _checked("predict", PredictParams, dataset=self.dataset_name, cases=self.predict.cases, output="/", **rest)
        _checked("resources", Resources, **self.resource_fields())
        if CASCADE in self.preprocess.configurations and "3d_lowres" not in self.preprocess.configurations:
            raise ValueError("preprocess.configurations: 3d_cascade_fullres starts from 3d_lowres; add 3d_lowres to the list")
        too_high = [fold for fold in numbered if fold >= self.preprocess.folds]
        if too_high:
            raise ValueError(f"train.folds={too_high}: the split has folds 0 to {self.preprocess.folds - 1}; raise preprocess.folds")
        absolute = self.predict.cases in (*_HELD_OUT, "none") or self.predict.cases.startswith(("/", "{{"))
        if not absolute:
            raise ValueError(f"predict.cases={self.predict.cases!r}: must be holdout, imagesTs, none or an absolute folder")
        if self.predict.dicom_seg and self.predict.cases in (*_HELD_OUT, "none"):
            raise ValueError("predict.dicom_seg=True: predict.cases must be a folder of DICOM studies, whose series the result belongs to")
        return self

    @property
    def dataset_name(self) -> str:
        """nnU-Net's folder name, such as ``Dataset004_Hippocampus``."""
        return dataset_name(self.dataset.id, self.dataset.name)

    @property
    def train_folds(self) -> list[int | str]:
        """Folds to train; all of the split unless the file says otherwise."""
        return list(range(self.preprocess.folds)) if self.train.folds is None else list(self.train.folds)

    def register_fields(self) -> dict[str, Any]:
        """Section ``dataset`` as RegisterDatasetOperator's fields."""
        fields = self.dataset.model_dump(exclude={"id"}, exclude_none=True)
        return {"dataset_id": self.dataset.id, **fields}

    def train_fields(self) -> dict[str, Any]:
        """Section ``train`` as TrainFoldOperator's fields, the same for every fold."""
        fields = self.train.model_dump(exclude={"folds"})
        if fields["npz"] is None:
            fields["npz"] = self.select.ensembles and len(self.preprocess.configurations) > 1
        return fields

    def resource_fields(self) -> dict[str, Any]:
        """Section ``resources`` as the contract's :class:`Resources`."""
        fields = self.resources.model_dump(exclude={"num_gpus"})
        return {"gpus": self.resources.num_gpus, **fields}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a folder of dataset files holds: the good ones by file stem, and one message for each broken one."""

    configs: Mapping[str, TrainingConfig]
    errors: Mapping[str, str]


def load_config(path: Path) -> TrainingConfig:
    """Read and check one dataset file.

    Raises:
        DatasetConfigError: it is not YAML, or a field is unknown, missing or out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.load(text, Loader=_loader())  # noqa: S506 (both loaders are safe ones)
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise DatasetConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise DatasetConfigError(f"{path}: must be a mapping that begins with 'dataset:'; see include/datasets/README.md")
    try:
        config = TrainingConfig.model_validate(data)
    except ValidationError as error:
        raise DatasetConfigError("\n".join(_explain(path, text, error))) from None
    return config if config.dag_id else config.model_copy(update={"dag_id": f"nnunet_{path.stem}"})


def load_folder(folder: Path) -> Loaded:
    """Read every ``*.yaml`` of a folder. A broken file is reported and never hides a good one."""
    configs: dict[str, TrainingConfig] = {}
    errors: dict[str, str] = {}
    names: dict[int, tuple[str, str]] = {}
    dag_ids: dict[str, str] = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            config = load_config(path)
            taken, by = names.setdefault(config.dataset.id, (config.dataset.name, path.name))
            if taken != config.dataset.name:
                raise DatasetConfigError(f"{path}: dataset.id={config.dataset.id}: {by} uses it for {taken!r}; choose another number")
            other = dag_ids.setdefault(str(config.dag_id), path.name)
            if other != path.name:
                raise DatasetConfigError(f"{path}: dag_id={config.dag_id!r}: {other} has it already; choose another")
        except DatasetConfigError as error:
            errors[path.name] = str(error)
        else:
            configs[path.stem] = config
    return Loaded(configs=configs, errors=errors)


@functools.cache
def _loader() -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _checked(section: str, build: Callable[..., object], *args: Any, **fields: Any) -> None:
    try:
        build(*args, **fields)
    except ConfigError as error:
        text = str(error).split(": ", 1)[1] if str(error).startswith(f"{getattr(build, 'step', '-')}: ") else str(error)
        raise ValueError(f"{section}.{text.removeprefix('dataset_')}") from None


def _explain(path: Path, text: str, error: ValidationError) -> Iterator[str]:
    """One line a fault: ``file:line: field=value: what is wrong and the mend``."""
    for fault in error.errors(include_url=False):
        location = tuple(
            part for part in fault["loc"] if isinstance(part, int) or not str(part).startswith(("int", "literal", "constrained"))
        )
        field = ".".join(str(part) for part in location)
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "value_error":
            field, _, message = message.partition(":")
            location = tuple(field.partition("=")[0].split("."))
            message = message.strip()
        elif fault["type"] == "extra_forbidden":
            message = f"unknown field; {_suggest(location)}"
        elif fault["type"] == "missing":
            message = "is missing; add it"
        elif not isinstance(fault["input"], dict):
            field = f"{field}={fault['input']!r}"
        yield f"{path}:{_line(text, location)}: {field}: {message}"


def _suggest(location: tuple[int | str, ...]) -> str:
    """The nearest known field of the section that ``location`` points into, else all of them."""
    section: Any = TrainingConfig
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation if hasattr(section, "model_fields") else None
        section = annotation if isinstance(annotation, type) else next(iter(typing.get_args(annotation)), None)
    known = list(getattr(section, "model_fields", ()))
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"remove it; known here: {', '.join(known)}"


def _line(text: str, location: tuple[int | str, ...]) -> int:
    """Line of the deepest part of ``location`` that the file has."""
    node = yaml.compose(text, Loader=_loader())
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
