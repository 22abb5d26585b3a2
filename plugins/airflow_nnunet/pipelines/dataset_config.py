"""Reads ``include/datasets/*.yaml``. Each file describes one dataset's pipeline and is checked before a DAG is built.

Exceptions::

    ValueError
    └── DatasetConfigError    one or several files are wrong
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from airflow_nnunet.jobs.retry import DEFAULT_RETRIES
from airflow_nnunet.operators.fields import is_template
from airflow_nnunet.pipelines.dataset_sections import (
    DatasetSection,
    EvaluateSection,
    Fold,
    PredictSection,
    PreprocessSection,
    ResourcesSection,
    SelectSection,
    TrainSection,
)
from airflow_nnunet.pipelines.schedules import check_schedule, check_timezone
from airflow_nnunet.settings.airflow_names import Owner, PoolName, Priority, QueueName, Retries, Tag
from airflow_nnunet.settings.pool_names import GPU_POOL
from airflow_nnunet.settings.python_classes import check_class
from airflow_nnunet.settings.teams import Teams, load_teams
from airflow_nnunet.settings.yaml_files import Section, WrongField, line_of, location_of, read_model, yaml_files
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.contract.steps.params import HELD_OUT, FindBestParams, PredictParams, PreprocessParams, RegisterParams, TrainParams
from nnunet_jobs.contract.storage.workspace import dataset_name

__all__ = [
    "CASCADE",
    "LOW_RESOLUTION",
    "DatasetConfigError",
    "DatasetSection",
    "EvaluateSection",
    "Fold",
    "Loaded",
    "PredictSection",
    "PreprocessSection",
    "ResourcesSection",
    "SelectSection",
    "TrainSection",
    "TrainingConfig",
    "load_config",
    "load_folder",
]
CASCADE, LOW_RESOLUTION = "3d_cascade_fullres", "3d_lowres"
_DAG_ID = re.compile(r"[\w.\-]{1,200}")
_MOST_STEM = 200 - len("nnunet_")
MODELS_DAG_ID = "nnunet_models"
_OUR_DAGS = (
    MODELS_DAG_ID,
    "nnunet_prediction",
    "nnunet_predictions",
    "nnunet_prediction_cleanup",
    "nnunet_dicom_pull",
    "hospital_etl_example",
)


class DatasetConfigError(ValueError):
    """A dataset file is wrong. The message names file, line, field, value and fix."""


class TrainingConfig(Section):
    """One file of ``include/datasets``, or the configuration that Python code passes to the builder."""

    dag_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.\-]{1,200}$", description="`nnunet_<file name>` when empty.")
    description: str | None = Field(default=None, description="One line for the DAG list.")
    dataset: DatasetSection
    preprocess: PreprocessSection = PreprocessSection()
    train: TrainSection = TrainSection()
    select: SelectSection = SelectSection()
    evaluate: EvaluateSection = EvaluateSection()
    predict: PredictSection = PredictSection()
    schedule: str | None = Field(
        default=None, description="Cron expression or preset such as `@daily`; if empty, runs are only started by hand."
    )
    timezone: str | None = Field(
        default=None, description="Time zone of `schedule`, such as `Europe/Berlin`; `default_timezone` of section `[core]` when empty."
    )
    owner: Owner = Field(default="nnunet", description="Shown in the DAG list.")
    team: str | None = Field(
        default=None,
        description="Name of a file in `include/teams`. The team's workspace and roots are used, and its pool, queue and priority are "
        "the defaults here. The DAG gets the tag `team:<name>`.",
    )
    tags: list[Tag] = Field(default=[], description="More tags for the DAG list.")
    pool: PoolName = Field(default=GPU_POOL, description="Airflow pool of trainings and predictions.")
    queue: QueueName | None = Field(
        default=None, description="Queue of trainings and predictions, for Celery workers that listen to some; Airflow's own when empty."
    )
    priority: Priority = Field(default=1, description="Airflow priority weight; tasks with a higher one go first in the pool.")
    retries: Retries = Field(default=DEFAULT_RETRIES, description="Retries of failures that a retry can fix.")
    resources: ResourcesSection = ResourcesSection()
    nnunet_conn_id: str | None = Field(default=None, description="Connection with another workspace than that of section [nnunet].")
    deferrable: bool = Field(default=True, description="false holds a worker slot while a job runs.")

    @model_validator(mode="after")
    def _check_schedule(self) -> TrainingConfig:
        check_timezone(self.timezone)
        if self.schedule is not None:
            check_schedule(self.schedule, self.timezone)
        elif self.timezone is not None:
            raise WrongField(
                field="timezone",
                value=self.timezone,
                problem="needs a schedule, and there is none",
                fix="add a schedule, or remove this field",
            )
        return self

    @model_validator(mode="after")
    def _check_with_contract(self) -> TrainingConfig:
        """Run the contract's own checks, so that a wrong number is an import error now and not a failed run later."""
        _checked("dataset", dataset_name, self.dataset.id, self.dataset.name)
        _checked("dataset", RegisterParams, **self.register_fields())
        _checked("preprocess", PreprocessParams, datasets=[self.dataset_name], **self.preprocess.model_dump())
        probe = {"dataset": self.dataset_name, "configuration": self.preprocess.configurations[0]}
        _checked("train", TrainParams, **probe, fold=0, **self.train_fields())
        numbered = [fold for fold in self.train_folds if isinstance(fold, int)]
        compared: list[int | str] = [*numbered] or ["all" if "all" in self.train_folds else 0]
        _checked("select", FindBestParams, dataset=self.dataset_name, folds=compared, **self.select.model_dump())
        _checked("evaluate", FindBestParams, dataset=self.dataset_name, **self.evaluate.model_dump())
        rest = self.predict.model_dump(exclude={"cases", "output", "parts"})
        _checked("predict", PredictParams, dataset=self.dataset_name, cases=self.predict.cases, output="/", **rest)
        _checked("resources", Resources, **self.resource_fields())
        for problem in self._problems(numbered):
            raise problem
        return self

    def _problems(self, numbered: list[int]) -> Iterator[WrongField]:
        """Yield contradictions between sections and fields, and paths that no job could find."""
        if CASCADE in self.preprocess.configurations and LOW_RESOLUTION not in self.preprocess.configurations:
            problem, fix = f"{CASCADE} starts from {LOW_RESOLUTION}", f"add {LOW_RESOLUTION} to the list"
            yield WrongField(field="preprocess.configurations", problem=problem, fix=fix)
        if too_high := [fold for fold in numbered if fold >= self.preprocess.folds]:
            problem = f"the split has folds 0 to {self.preprocess.folds - 1}"
            yield WrongField(field="train.folds", value=too_high, problem=problem, fix="raise preprocess.folds")
        if len(set(map(str, self.train_folds))) < len(self.train_folds):
            yield WrongField(field="train.folds", value=self.train_folds, problem="names a fold twice", fix="name each fold once")
        tolerance = self.evaluate.tolerance_mm
        names = [name for name in self.dataset.label_names or () if name not in ("background", "ignore")]
        if isinstance(tolerance, dict) and names and (unknown := set(tolerance) - set(names)):
            problem, fix = "is no label of dataset.label_names", f"name one of {', '.join(names)}"
            yield WrongField(field="evaluate.tolerance_mm", value=min(unknown), problem=problem, fix=fix)
        paths = {"predict.output": self.predict.output}
        if self.predict.cases not in (*HELD_OUT, "none"):
            paths["predict.cases"] = self.predict.cases
        if "/" in (self.train.pretrained or ""):
            paths["train.pretrained"] = self.train.pretrained
        source = self.dataset.source
        if not source.startswith("/") and not is_template(source):
            yield WrongField(field="dataset.source", value=source, problem="must be an absolute path, or a template of one")
        for field, path in paths.items():
            # Folds and parts are planned during the run, and the values of a plan are not rendered again.
            if path is not None and (not path.startswith("/") or is_template(path)):
                others = "holdout, imagesTs, none or " if field == "predict.cases" else ""
                yield WrongField(field=field, value=path, problem=f"must be {others}an absolute path, and not a template")
        if self.predict.dicom_seg and self.predict.cases in (*HELD_OUT, "none"):
            problem = "predict.cases must be a folder of DICOM studies, because a DICOM SEG refers to its series"
            yield WrongField(field="predict.dicom_seg", value=True, problem=problem)

    def of_team(self, teams: Teams) -> TrainingConfig:
        """Return this configuration with its team's pool, queue and priority, as far as it has none of its own.

        Raises:
            ConfigError: There is no such team, its file is wrong, or the pool belongs to another team.
        """
        if self.team is None or "pool" in self.model_fields_set:
            teams.check_pool(self.pool, self.team)
        if self.team is None:
            return self
        if self.nnunet_conn_id:
            raise ConfigError(
                field="nnunet_conn_id",
                value=self.nnunet_conn_id,
                problem=f"the workspace of team {self.team} is in its own file",
                fix="remove this field",
            )
        defaults = teams.get(self.team).dataset_defaults()
        return self.model_copy(update={name: value for name, value in defaults.items() if name not in self.model_fields_set})

    @property
    def dataset_name(self) -> str:
        """Return nnU-Net's folder name, such as ``Dataset004_Hippocampus``."""
        return dataset_name(self.dataset.id, self.dataset.name)

    @property
    def train_folds(self) -> list[int | str]:
        """Return the folds to train: those of the file, or all folds of the split."""
        return list(range(self.preprocess.folds)) if self.train.folds is None else list(self.train.folds)

    def register_fields(self) -> dict[str, Any]:
        """Return section ``dataset`` as RegisterDatasetOperator's fields."""
        fields = self.dataset.model_dump(exclude={"id"}, exclude_none=True)
        return {"dataset_id": self.dataset.id, **fields}

    def train_fields(self) -> dict[str, Any]:
        """Return section ``train`` as TrainFoldOperator's fields, the same for every fold."""
        fields = self.train.model_dump(exclude={"folds"})
        if fields["npz"] is None:
            fields["npz"] = self.select.ensembles and len(self.preprocess.configurations) > 1
        return fields

    def resource_fields(self) -> dict[str, Any]:
        """Return section ``resources`` as fields of the contract's :class:`Resources`."""
        fields = self.resources.model_dump(exclude={"num_gpus"})
        return {"gpus": self.resources.num_gpus, **fields}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Holds the configurations of a folder by file name, and one message for each file that is wrong."""

    configs: Mapping[str, TrainingConfig]
    errors: Mapping[str, str]


def models_dag_id(team: str | None) -> str:
    """Return the name of the DAG that changes the models of a team's datasets, or of those without a team."""
    return f"{MODELS_DAG_ID}_{team}" if team else MODELS_DAG_ID


def load_config(path: Path, teams: Teams | None = None) -> TrainingConfig:
    """Read and check one dataset file, with its team's defaults. ``teams`` are those of the site if None.

    Raises:
        DatasetConfigError: The file is not YAML, a field is unknown, missing or out of range, or there is no such team.
    """
    config = read_model(path, TrainingConfig, error=DatasetConfigError, hint="that begins with 'dataset:'; see include/datasets/README.md")
    try:
        config = config.of_team(teams or load_teams())
        for section, kind, name in (("train", "trainer", config.train.trainer), ("preprocess", "planner", config.preprocess.planner)):
            _checked(section, check_class, kind, name, team=config.team, conn_id=config.nnunet_conn_id)
    except WrongField as wrong:
        raise DatasetConfigError(f"{path}:{line_of(path, *location_of(wrong.error))}: {wrong}") from wrong
    except ConfigError as error:
        raise DatasetConfigError(f"{path}:{line_of(path, *location_of(error))}: {error}") from error
    if config.dag_id is None:
        config = config.model_copy(update={"dag_id": f"nnunet_{path.stem}"})
        if not _DAG_ID.fullmatch(str(config.dag_id)):
            raise DatasetConfigError(
                f"{path}: its DAG would be {config.dag_id!r}; use at most {_MOST_STEM} letters, digits, '_', '-' and '.' in the file's "
                "name, or set dag_id"
            )
    return config


def load_folder(folder: Path) -> Loaded:
    """Read every YAML file of a folder that is not hidden, without sub-folders. A wrong file does not affect the others."""
    configs: dict[str, TrainingConfig] = {}
    errors: dict[str, str] = {}
    names: dict[int, tuple[str, str]] = {}
    teams = load_teams()
    of_teams = [name for team in teams.configs for name in (f"nnunet_predictions_{team}", models_dag_id(team))]
    dag_ids = dict.fromkeys([*_OUR_DAGS, *of_teams], "one of this package's own DAGs")
    for path in yaml_files(folder.iterdir() if folder.is_dir() else ()):
        try:
            config = load_config(path, teams)
            taken, by = names.setdefault(config.dataset.id, (config.dataset.name, path.name))
            if taken != config.dataset.name:
                raise DatasetConfigError(f"{path}: dataset.id={config.dataset.id}: {by} uses it for {taken!r}; choose another number")
            other = dag_ids.setdefault(str(config.dag_id), path.name)
            if other != path.name:
                raise DatasetConfigError(f"{path}: dag_id={config.dag_id!r}: {other} has it already; set dag_id to another one")
        except DatasetConfigError as error:
            errors[path.name] = str(error)
        except Exception as error:  # no error in one file may affect the others
            errors[path.name] = f"{path}: cannot be used: {type(error).__name__}: {error}"
        else:
            configs[path.name] = config
    return Loaded(configs=configs, errors=errors)


def _checked(section: str, build: Callable[..., object], *args: Any, **fields: Any) -> None:
    try:
        build(*args, **fields)
    except ConfigError as error:
        raise WrongField(error.told(field=f"{section}.{(error.field or '').removeprefix('dataset_')}")) from None
