"""The form that a run is triggered with: typed params with the dataset file's values as defaults, and how a run reads them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow.sdk import Param

from airflow_nnunet.dataset_config import CASCADE, TrainingConfig
from nnunet_jobs.contract.failure import ConfigError

_WHAT, _TRAINING, _RESULT, _RUN = "What to train", "How to train", "Selection and prediction", "This run"


def form(config: TrainingConfig) -> dict[str, Param]:
    """Params of a training DAG, in the order of the form."""
    configurations = list(config.preprocess.configurations)
    folds = [str(fold) for fold in (*range(config.preprocess.folds), "all")]
    optional_int: dict[str, Any] = {"type": ["null", "integer"], "minimum": 1}
    return {
        "configurations": Param(
            configurations,
            type="array",
            items={"type": "string", "enum": configurations},
            examples=configurations,
            minItems=1,
            uniqueItems=True,
            title="Configurations",
            description="Which of the planned configurations to train and compare.",
            section=_WHAT,
        ),
        "folds": Param(
            [str(fold) for fold in config.train_folds],
            type="array",
            items={"type": "string", "enum": folds},
            examples=folds,
            minItems=1,
            uniqueItems=True,
            title="Folds",
            description="Cross-validation folds to train. 'all' trains on every case and has no honest validation.",
            section=_WHAT,
        ),
        "trainer": Param(
            config.train.trainer,
            type="string",
            pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$",
            title="Trainer",
            description="Any nnU-Net trainer class, or one of yours below trainer_paths.",
            section=_TRAINING,
        ),
        "epochs": Param(
            config.train.epochs, **optional_int, title="Epochs", description="Empty leaves the trainer's own number.", section=_TRAINING
        ),
        "iterations": Param(
            config.train.iterations,
            **optional_int,
            title="Iterations an epoch",
            description="Empty leaves the trainer's own number.",
            section=_TRAINING,
        ),
        "pretrained": Param(
            config.train.pretrained,
            type=["null", "string"],
            title="Fine-tune from",
            description="A model id of this workspace, or a checkpoint file. Empty trains from scratch.",
            section=_TRAINING,
        ),
        "promote": Param(
            config.select.promote,
            type="string",
            enum=["if_better", "always", "never"],
            values_display={"if_better": "If it is better than the current one", "always": "Always", "never": "Never"},
            title="Promote the model",
            description="Promotion repoints the dataset's link, so that predictions use the new model.",
            section=_RESULT,
        ),
        "predict": Param(
            config.predict.cases,
            type="string",
            examples=["holdout", "imagesTs", "none"],
            title="Predict",
            description="'holdout' or 'imagesTs' of the dataset, 'none', or an absolute folder below input_roots.",
            section=_RESULT,
        ),
        "force": Param(
            False,
            type="boolean",
            title="Run although nothing is new",
            description="Goes through every step. Steps verify finished work and keep it; they do not repeat it.",
            section=_RUN,
        ),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What one run trains, selects and predicts: the dataset file with the form's values over it.

    Attributes:
        configurations, folds: to train. train: the other fields of TrainFoldOperator, the same for every fold.
        promote, predict: as in the dataset file. force: go through all steps although nothing is new.
    """

    configurations: list[str]
    folds: list[int | str]
    train: dict[str, Any]
    promote: str
    predict: str
    force: bool

    @classmethod
    def of_run(cls, config: TrainingConfig, params: Mapping[str, Any]) -> RunSettings:
        """Settings of a run. ``params`` may lack any field: a task group lives in a DAG with params of its own.

        Raises:
            ConfigError: the cascade was chosen without its low-resolution stage, or no numbered fold is left to select with.
        """
        folds = [int(fold) if str(fold).isdigit() else str(fold) for fold in params.get("folds") or config.train_folds]
        chosen = list(params.get("configurations") or config.preprocess.configurations)
        if CASCADE in chosen and "3d_lowres" not in chosen:
            raise ConfigError(f"configurations={chosen}: {CASCADE} starts from 3d_lowres; choose that too")
        train = config.train_fields()
        train.update({name: params[name] for name in ("trainer", "epochs", "iterations", "pretrained") if name in params})
        return cls(
            configurations=chosen,
            folds=folds,
            train=train,
            promote=params.get("promote", config.select.promote),
            predict=params.get("predict", config.predict.cases),
            force=bool(params.get("force", False)),
        )

    @property
    def numbered_folds(self) -> list[int]:
        """Folds with an honest validation, which selection compares."""
        return [fold for fold in self.folds if isinstance(fold, int)]
