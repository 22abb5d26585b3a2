"""What an author writes wrongly is the DAG's import error, in operators, mapped ones included, and not a failed run a night later."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, XComArg

from airflow_nnunet.operators import (
    BatchPredictOperator,
    FindBestConfigOperator,
    NnunetOperator,
    PreprocessOperator,
    RegisterDatasetOperator,
    TrainFoldOperator,
)
from nnunet_jobs.contract.failure import ConfigError

REGISTER = {"dataset_id": 4, "name": "Hip", "source": "/in"}
PREPROCESS = {"datasets": ["4"]}
TRAIN = {"dataset": 4, "configuration": "2d", "fold": 0}
BEST = {"dataset": 4}
PREDICT = {"dataset": 4, "cases": "holdout", "output_folder": "/out"}
REQUIRED: dict[type[NnunetOperator], dict[str, Any]] = {
    RegisterDatasetOperator: REGISTER,
    PreprocessOperator: PREPROCESS,
    TrainFoldOperator: TRAIN,
    FindBestConfigOperator: BEST,
    BatchPredictOperator: PREDICT,
}
WRONG: list[tuple[type[NnunetOperator], dict[str, Any], str]] = [
    (TrainFoldOperator, {"epochs": -1}, "epochs=-1: must be 1 or more"),
    (TrainFoldOperator, {"epochs": "-3"}, "epochs=-3: must be 1 or more"),
    (TrainFoldOperator, {"seed": -1}, "seed=-1: must be 0 to 4294967295"),
    (TrainFoldOperator, {"initial_lr": float("inf")}, "initial_lr=inf: must be a number"),
    (
        TrainFoldOperator,
        {"trainer": "nnUNetTrainerr"},
        "trainer='nnUNetTrainerr': no such class in nnU-Net or below trainer_paths; did you",
    ),
    (TrainFoldOperator, {"trainer": "Qwertz"}, "trainer='Qwertz': no such class .*add its folder to trainer_paths"),
    (TrainFoldOperator, {"pretrained": "models/best.pth"}, "pretrained='models/best.pth': must be a model id or an absolute path"),
    (FindBestConfigOperator, {"trainer": "nnUNetTrainerX"}, "trainer='nnUNetTrainerX': no such class"),
    (PreprocessOperator, {"planner": "ExperimentPlaner"}, "planner='ExperimentPlaner': no such class in nnU-Net; did you mean"),
    (PreprocessOperator, {"configurations": ["3d_fulres"]}, "configurations=.*'3d_fulres' is not .*did you mean '3d_fullres'"),
    (PreprocessOperator, {"configurations": "2d, 2d"}, "configurations=.*is named twice"),
    (
        PreprocessOperator,
        {"custom_configurations": {"x": {"inherits_from": "2dd"}}},
        r"custom_configurations\['x'\]: inherits_from='2dd' is not a conf",
    ),
    (RegisterDatasetOperator, {"source": "data/Task04"}, "source='data/Task04': must be an absolute path"),
    (RegisterDatasetOperator, {"source": "~/Task04"}, "source='~/Task04': must be an absolute path"),
    (RegisterDatasetOperator, {"source": Path("data")}, "source='data': must be an absolute path"),
    (RegisterDatasetOperator, {"spacing_tolerance": float("nan")}, "spacing_tolerance=nan: must be a number"),
    (BatchPredictOperator, {"output_folder": "out"}, "output_folder='out': must be an absolute path"),
    (BatchPredictOperator, {"cases": "incoming"}, "cases='incoming': must be holdout, imagesTs or an absolute path"),
    (BatchPredictOperator, {"cases": [{"case": "a", "images": ["a.nii.gz"]}]}, r"cases='a\.nii\.gz': must be"),
    (BatchPredictOperator, {"cases": '["/in/a.nii.gz", "b.nii.gz"]'}, r"cases='b\.nii\.gz': must be"),
    *(
        (operator, fields, words)
        for operator in REQUIRED
        for fields, words in (
            ({"device": "gpu"}, "device='gpu': must be one of auto, cuda, cpu"),
            ({"num_gpus": -1}, "gpus=-1: must be 0 or more"),
            ({"num_gpus": 1.5}, "gpus=1.5: must be an integer"),
            ({"memory_mib": "lots"}, "memory_mib='lots': must be an integer"),
            ({"hang_s": float("nan")}, "hang_s=nan: must be a number"),
            ({"grace_s": 0}, "grace_s=0: must be more than 0 seconds"),
        )
    ),
]


def plain(operator: type[NnunetOperator], fields: dict[str, Any]) -> None:
    operator(task_id="t", **{**REQUIRED[operator], **fields})


def partial(operator: type[NnunetOperator], fields: dict[str, Any]) -> None:
    operator.partial(task_id="t", **fields)


def beside_a_template(operator: type[NnunetOperator], fields: dict[str, Any]) -> None:
    operator.partial(task_id="t", **{name: "{{ params.x }}" for name in REQUIRED[operator] if name not in fields}, **fields)


def expanded(operator: type[NnunetOperator], fields: dict[str, Any]) -> None:
    ((name, value),) = fields.items()
    good = REQUIRED[operator].get(name)
    operator.partial(task_id="t", **{known: item for known, item in REQUIRED[operator].items() if known != name}).expand(
        **{name: [*([] if good is None else [good]), value]}
    )


def expanded_by_keywords(operator: type[NnunetOperator], fields: dict[str, Any]) -> None:
    operator.partial(task_id="t").expand_kwargs([REQUIRED[operator], {**REQUIRED[operator], **fields}])


WAYS: list[Callable[[type[NnunetOperator], dict[str, Any]], None]] = [plain, partial, beside_a_template, expanded, expanded_by_keywords]


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_constant_is_refused_however_it_is_given(way: Any, nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__NNUNET__BACKEND", "local")
    accepted = []
    for operator, fields, words in WRONG:
        with DAG("dag", schedule=None), warnings.catch_warnings():
            warnings.simplefilter("error")  # a partial that was refused is no task that was never mapped
            try:
                with pytest.raises(ConfigError, match=words):
                    way(operator, fields)
            except (pytest.fail.Exception, AssertionError) as error:
                accepted.append(f"{operator.__name__} {fields}: {error}")
    assert not accepted


def test_what_is_only_known_later_or_elsewhere_is_not_judged(nnunet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRFLOW__NNUNET__BACKEND", "local")
    with DAG("dag", schedule=None) as dag:
        first = TrainFoldOperator(task_id="first", **TRAIN, trainer="{{ params.trainer }}", pretrained="m1")
        result: Any = XComArg(first, key="model")
        TrainFoldOperator(task_id="other_site", **TRAIN, trainer="TheirTrainer", nnunet_conn_id="theirs")
        mapped = TrainFoldOperator.partial(task_id="mapped", dataset=4, configuration="2d", epochs="{{ params.epochs }}", pretrained=result)
        mapped.expand(fold=[0, "all", "{{ params.fold }}"])
        PreprocessOperator(task_id="own", **PREPROCESS, configurations=["2d_x"], custom_configurations={"2d_x": {"inherits_from": "2d"}})
        PreprocessOperator(task_id="kept", **PREPROCESS, configurations=["2d_of_theirs"], replan="never")
        BatchPredictOperator.partial(task_id="parts", **PREDICT, fast=None).expand(part=[0, 1])
        BatchPredictOperator(task_id="path", dataset=4, cases=Path("/in"), output_folder=Path("/out"))  # type: ignore[arg-type]
    assert dag.get_task("path").step_params().to_json()["cases"] == "/in"  # type: ignore[union-attr]
    monkeypatch.setenv("AIRFLOW__NNUNET__BACKEND", "docker")
    TrainFoldOperator(task_id="t", **TRAIN, trainer="OfTheImage")
    monkeypatch.setenv("AIRFLOW__NNUNET__BACKEND", "local")
    monkeypatch.setenv("AIRFLOW__NNUNET__PYTHON", str(tmp_path / "venv" / "bin" / "python"))
    TrainFoldOperator(task_id="t", **TRAIN, trainer="OfAnInterpreterElsewhere")


def test_trainers_are_found_below_trainer_paths_without_being_imported(
    nnunet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "trainers" / "ours"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "slow.py").write_text(
        "raise SystemExit('imported')\nclass OurTrainer(nnUNetTrainer): pass\nMadeByHand = type('MadeByHand', (), {})\n"
    )
    monkeypatch.setenv("AIRFLOW__NNUNET__BACKEND", "local")
    monkeypatch.setenv("AIRFLOW__NNUNET__TRAINER_PATHS", str(tmp_path / "trainers"))
    for name in ("OurTrainer", "MadeByHand", "nnUNetTrainer", "nnUNetTrainer_5epochs"):
        TrainFoldOperator(task_id="t", **TRAIN, trainer=name)
    with pytest.raises(ConfigError, match="did you mean 'OurTrainer'"):
        TrainFoldOperator(task_id="t", **TRAIN, trainer="OurTrainerr")
