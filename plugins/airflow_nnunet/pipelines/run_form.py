"""Makes the form to trigger a run, with the dataset file's values as defaults, and reads the values back in a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

from airflow.sdk import Param

from airflow_nnunet.operators.fields import coerce, is_template
from airflow_nnunet.pipelines.dataset_config import CASCADE, LOW_RESOLUTION, TrainingConfig
from airflow_nnunet.settings.python_classes import check_class, known_classes
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.fields import field_types
from nnunet_jobs.contract.steps.params import HELD_OUT, FindBestParams, TrainParams
from nnunet_jobs.contract.steps.promotion import PROMOTE

_WHAT, _TRAINING, _RESULT, _RUN = "What to train", "How to train", "Selection and prediction", "This run"
_CLASS_NAME = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"
# With "minimum", Airflow's form would silently turn -3 into 1. This keyword leads to an error message instead.
_AT_LEAST_ONE: dict[str, Any] = {"exclusiveMinimum": 0}


def form(config: TrainingConfig, group_id: str | None = None) -> dict[str, Param]:
    """Return the params of a training DAG, in the order of the form. Wrong values are refused when a run is triggered.

    Args:
        config: The dataset's configuration, whose values are the defaults.
        group_id: Full id of a :func:`~airflow_nnunet.pipelines.dag_builder.training_task_group` in your own DAG. Each
            name is then ``<group_id>.<field>``, such as ``nnunet.epochs``, apart from the DAG's other params.
    """
    fields = _fields(config)
    if group_id is None:
        return fields
    for param in fields.values():
        param.schema["section"] = f"{group_id}: {param.schema['section']}"
    return {param_name(name, group_id): param for name, param in fields.items()}


def param_name(field: str, group_id: str | None) -> str:
    """Return the name that a field of the form has among a DAG's params."""
    return field if group_id is None else f"{group_id}.{field}"


def _fields(config: TrainingConfig) -> dict[str, Param]:
    configurations = list(config.preprocess.configurations)
    folds = [str(fold) for fold in (*range(config.preprocess.folds), "all")]
    optional_int: dict[str, Any] = {"type": ["null", "integer"], **_AT_LEAST_ONE}
    trainers = known_classes("trainer", team=config.team, conn_id=config.nnunet_conn_id)
    cascade: dict[str, Any] = {
        "if": {"contains": {"const": CASCADE}},
        "then": {"contains": {"const": LOW_RESOLUTION}},
    }
    return {
        "configurations": Param(
            configurations,
            type="array",
            items={"type": "string", "enum": configurations},
            examples=configurations,
            minItems=1,
            uniqueItems=True,
            **(cascade if CASCADE in configurations else {}),
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
            description="Cross-validation folds to train. 'all' trains on every case and has no independent validation.",
            section=_WHAT,
        ),
        "trainer": Param(
            config.train.trainer,
            type="string",
            **({"enum": sorted({*trainers.names, config.train.trainer})} if trainers else {"pattern": _CLASS_NAME}),
            title="Trainer",
            description="Any nnU-Net trainer class, or one of yours below trainer_paths.",
            section=_TRAINING,
        ),
        "epochs": Param(
            config.train.epochs,
            **optional_int,
            title="Epochs",
            description="If empty, the trainer's own number is used.",
            section=_TRAINING,
        ),
        "iterations": Param(
            config.train.iterations,
            **optional_int,
            title="Iterations per epoch",
            description="If empty, the trainer's own number is used.",
            section=_TRAINING,
        ),
        "pretrained": Param(
            config.train.pretrained,
            type=["null", "string"],
            pattern=r"^(/.+|[^/]+)$",
            title="Fine-tune from",
            description="A model id of this workspace, or a checkpoint file. If empty, training starts from scratch.",
            section=_TRAINING,
        ),
        "promote": Param(
            config.select.promote,
            type="string",
            enum=list(PROMOTE),
            values_display={
                "if_better": "If it is better than the current one, beyond chance",
                "if_not_worse": "If it is not worse than the last approved one",
                "ask": "Ask a person",
                "never": "Never",
                "always": "Always",
            },
            title="Promote the model",
            description="Predictions use the promoted model.",
            section=_RESULT,
        ),
        "predict": Param(
            config.predict.cases,
            type="string",
            examples=[*HELD_OUT, "none"],
            pattern=rf"^(?!.*{{[{{%])({'|'.join(HELD_OUT)}|none|/.*)$",
            title="Predict",
            description="'holdout' or 'imagesTs' of the dataset, 'none', or an absolute folder below input_roots.",
            section=_RESULT,
        ),
        "force": Param(
            False,
            type="boolean",
            title="Run although nothing is new",
            description="Runs every step. Steps check finished work and keep it; they do not repeat it.",
            section=_RUN,
        ),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Holds the settings of one run: the dataset file's values, overridden by the form's.

    Attributes:
        configurations: Configurations to train.
        folds: Folds to train.
        train: The other fields of TrainFoldOperator, the same for every fold.
        promote: Promotion rule, as in the dataset file.
        predict: Cases to predict, as in the dataset file.
        force: Whether to run all steps although nothing is new.
    """

    configurations: list[str]
    folds: list[int | str]
    train: dict[str, Any]
    promote: str
    predict: str
    force: bool

    @classmethod
    def of_run(cls, config: TrainingConfig, params: Mapping[str, Any], group_id: str | None = None) -> RunSettings:
        """Return the settings of a run.

        Args:
            config: The dataset's configuration, which has the defaults.
            params: Params of the run. Those of a user's own DAG may lack any field and may have any type.
            group_id: Full id of the task group, with which its params' names begin.

        Raises:
            ConfigError: The form would not accept a value; the message names the param.
        """

        def of(field: str, hint: Any, default: Any) -> Any:
            name = param_name(field, group_id)
            return coerce(params[name], hint, name) if params.get(name) is not None else default

        def refuse(field: str, problem: str) -> NoReturn:
            name = param_name(field, group_id)
            raise ConfigError(field=name, value=params[name], problem=problem)

        folds = of("folds", list[int | str], None) or config.train_folds
        allowed = [*range(config.preprocess.folds), "all"]
        if wrong := [fold for fold in folds if fold not in allowed]:
            refuse("folds", f"{wrong[0]!r} is not a fold of the split; choose from 0 to {config.preprocess.folds - 1} and 'all'")
        chosen = of("configurations", list[str], None) or list(config.preprocess.configurations)
        if wrong := [name for name in chosen if name not in config.preprocess.configurations]:
            refuse("configurations", f"{wrong[0]!r} is not planned; choose from {', '.join(config.preprocess.configurations)}")
        if CASCADE in chosen and LOW_RESOLUTION not in chosen:
            refuse("configurations", f"{CASCADE} starts from {LOW_RESOLUTION}; choose that too")
        train = config.train_fields()
        # An empty field of the form means the trainer's own number. A missing field means the dataset file's.
        for field in ("epochs", "iterations", "pretrained", "trainer"):
            if (name := param_name(field, group_id)) in params:
                train[field] = coerce(params[name], field_types(TrainParams)[field], name)
        if train["trainer"] is None:
            train["trainer"] = config.train.trainer
        promote, predict = of("promote", str, config.select.promote), of("predict", str, config.predict.cases)
        try:
            TrainParams(dataset=config.dataset_name, configuration=chosen[0], fold=0, **train)
            compared: list[int | str] = [*(fold for fold in folds if isinstance(fold, int))] or ["all"]
            FindBestParams(dataset=config.dataset_name, folds=compared, promote=promote)
            check_class("trainer", train["trainer"], team=config.team, conn_id=config.nnunet_conn_id)
        except ConfigError as error:
            raise error.told(field=param_name(error.field or "", group_id)) from None
        if predict not in (*HELD_OUT, "none") and (not predict.startswith("/") or is_template(predict)):
            raise ConfigError(
                field=param_name("predict", group_id), value=predict, problem=f"must be {', '.join(HELD_OUT)}, none or an absolute folder"
            )
        return cls(
            configurations=list(dict.fromkeys(chosen)),
            folds=list(dict.fromkeys(folds)),
            train=train,
            promote=promote,
            predict=predict,
            force=of("force", bool, False),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the run's tasks get as an XCom; the inverse of :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunSettings:
        """Read what :meth:`to_json` of this or another version wrote. Unknown keys are ignored.

        Raises:
            ConfigError: A key is missing.
        """
        for item in fields(cls):
            if item.name not in data:
                raise ConfigError(where="settings of the run:", field=item.name, problem="is missing", fix="clear the task run_settings")
        return cls(**{item.name: data[item.name] for item in fields(cls)})

    @property
    def compared_folds(self) -> list[int | str]:
        """Return the folds with an independent validation, which selection compares, or fold ``all`` without them."""
        numbered: list[int | str] = [fold for fold in self.folds if isinstance(fold, int)]
        return numbered or ["all"]
