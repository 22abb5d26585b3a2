"""A backend for tests of DAGs. It writes real job directories and needs neither nnU-Net nor a GPU."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_nnunet.backends.base import Backend
from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.liveness import write_counter
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.job.state import Fenced, Phase
from nnunet_jobs.contract.steps.base import StepParams, StepResult
from nnunet_jobs.contract.steps.params import FindBestParams, PredictParams, PreprocessParams, RegisterParams, TrainParams
from nnunet_jobs.contract.steps.results import (
    FindBestResult,
    PredictResult,
    PreprocessedDataset,
    PreprocessResult,
    RegisterResult,
    TrainResult,
)
from nnunet_jobs.contract.storage.files import content_hash, locked
from nnunet_jobs.contract.storage.predictions import PREDICTIONS
from nnunet_jobs.contract.storage.workspace import MODEL_CARD, dataset_name

_BEAT_S = 0.02
_PLANS = "nnUNetPlans"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeOutcome:
    """Defines what an attempt does.

    Attributes:
        result: Result of the step as a JSON object, with all keys that its class in
            :mod:`nnunet_jobs.contract.steps.results` needs; :func:`plausible_result` when None.
        failure: Failure class, if the attempt is to fail.
        message: Message of the failure.
        records: Records of progress to write.
        seconds: Duration in seconds; with 0 the attempt ends within ``submit``.
        forever: Whether the attempt runs until it is cancelled.
        lost: Whether the attempt ends without writing an outcome.
    """

    result: Mapping[str, Any] | None = None
    failure: FailureClass | None = None
    message: str = "as the test asked"
    records: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    seconds: float = 0.0
    forever: bool = False
    lost: bool = False


Script = Callable[[JobSpec, int], FakeOutcome]


class FakeBackend(Backend):
    """Runs scripted outcomes in this process.

    Outcomes without a duration end within ``submit``. Others run in a daemon thread and are lost when the process ends.

    Args:
        outcomes: For each step name, an outcome for all attempts, or a list with one for each attempt (the last one
            repeats).
        script: Function that returns an outcome for a specification and the attempt's number. Other steps succeed.
    """

    name = "fake"

    def __init__(self, *, outcomes: Mapping[str, FakeOutcome | Sequence[FakeOutcome]] | None = None, script: Script | None = None) -> None:
        self.outcomes = dict(outcomes or {})
        self.script = script

    def start(self, job: JobDir, spec: JobSpec, attempt: int) -> None:
        """See :meth:`Backend.start`."""
        outcome = self._outcome(spec, attempt)
        ready = threading.Event()
        if outcome.seconds or outcome.forever:
            threading.Thread(target=_play, args=(job, spec, attempt, outcome, ready), daemon=True).start()
            ready.wait()
        else:
            _play(job, spec, attempt, outcome, ready)

    def _outcome(self, spec: JobSpec, attempt: int) -> FakeOutcome:
        if self.script is not None:
            return self.script(spec, attempt)
        found = self.outcomes.get(spec.step, FakeOutcome())
        if isinstance(found, FakeOutcome):
            return found
        return found[min(attempt, len(found)) - 1]


def _play(job: JobDir, spec: JobSpec, attempt: int, outcome: FakeOutcome, ready: threading.Event) -> None:
    """Act as a runner: take the lock, record phase, heartbeat and progress, obey requests, write the outcome."""
    try:
        with locked(job.runner_lock, interval=0.005, poll=lambda: job.check_fence(attempt)):
            beats = job.beat() + 1
            write_counter(job.heartbeat, beats)
            job.set_phase(attempt, Phase.RUNNING, "pretending")
            ready.set()
            for number, record in enumerate(outcome.records):
                with open(job.metrics, "ab") as file:
                    file.write((json.dumps({"t": round(time.time(), 3), **record}) + "\n").encode())
                write_counter(job.progress, number)
            with open(job.log, "ab") as file:
                file.write(f"fake attempt {attempt} of {spec.step}\n".encode())
            until = time.monotonic() + outcome.seconds
            while outcome.forever or time.monotonic() < until:
                beats += 1
                write_counter(job.heartbeat, beats)
                job.check_fence(attempt)
                reason = job.cancel_requested()
                if reason is not None:
                    message = f"cancelled: {reason}"
                    job.finish(attempt, Failure(failure_class=FailureClass.INTERRUPTED, message=message, attempt=attempt, cancelled=True))
                    return
                time.sleep(_BEAT_S)
            if outcome.lost:
                return
            if outcome.failure is not None:
                job.finish(attempt, Failure(failure_class=outcome.failure, message=outcome.message, attempt=attempt))
            else:
                result = dict(outcome.result) if outcome.result is not None else plausible_result(spec)
                job.finish(attempt, {"attempt": attempt, "result": result, "seconds": outcome.seconds, "device": "cpu", "gpus": []})
    except Fenced:
        return
    finally:
        ready.set()


def plausible_result(spec: JobSpec) -> dict[str, Any]:
    """Return a result in the form of the real step's, so that downstream tasks find the fields that they use."""
    return _result(spec, spec.step_params()).to_json()


def _result(spec: JobSpec, params: StepParams) -> StepResult:
    match params:
        case RegisterParams():
            return _registered(spec, params)
        case PreprocessParams():
            return _preprocessed(spec, params)
        case TrainParams():
            return _trained(spec, params)
        case FindBestParams():
            return _selected(spec, params)
        case PredictParams():
            return _predicted(params)
    raise ValueError(f"step {spec.step!r} has no plausible result; give FakeOutcome(result=...)")


def _registered(spec: JobSpec, params: RegisterParams) -> RegisterResult:
    dataset = dataset_name(params.dataset_id, params.name)
    return RegisterResult(
        dataset=dataset,
        dataset_id=params.dataset_id,
        hash=content_hash(dataset),
        training_hash=content_hash([dataset]),
        train=9,
        holdout=1,
        test=0,
        added=10,
        changed=0,
        removed=0,
        withdrawn=0,
        already_done=False,
        path=str(spec.workspace.raw_dataset(dataset)),
        report=None,
    )


def _preprocessed(spec: JobSpec, params: PreprocessParams) -> PreprocessResult:
    datasets = [_preprocessed_dataset(spec, params, dataset) for dataset in dict.fromkeys(map(_full_name, params.datasets))]
    first = datasets[0]
    return PreprocessResult(
        dataset=first.dataset,
        version=first.version,
        plans=first.plans,
        configurations=first.configurations,
        folds=first.folds,
        datasets=datasets,
    )


def _preprocessed_dataset(spec: JobSpec, params: PreprocessParams, dataset: str) -> PreprocessedDataset:
    version = _version(dataset)
    return PreprocessedDataset(
        dataset=dataset,
        version=version,
        path=str(spec.workspace.preprocessed_root(version)),
        plans=params.plans or _PLANS,
        configurations=params.configurations,
        folds=params.folds,
        cases=9,
        computed=9 * len(params.configurations),
        linked=0,
        replanned=False,
        reason="first plans",
        already_done=False,
    )


def _trained(spec: JobSpec, params: TrainParams) -> TrainResult:
    dataset = _full_name(params.dataset)
    model = _model(dataset)
    honest = params.fold != "all"
    return TrainResult(
        dataset=dataset,
        version=params.version or _version(dataset),
        model=model,
        trainer=params.trainer,
        plans=params.plans,
        configuration=params.configuration,
        fold=params.fold,
        path=str(spec.workspace.model_root(model)),
        dice=0.8 if honest else None,
        dice_per_label={"1": 0.8} if honest else None,
        dice_on_training_cases=None if honest else 0.9,
        epochs=params.epochs or 1000,
        resumed_from=None,
        already_done=False,
        seconds=0.0,
    )


def _selected(spec: JobSpec, params: FindBestParams) -> FindBestResult:
    dataset = _full_name(params.dataset)
    model = params.model or _model(dataset)
    configuration = next(iter(params.configurations), "2d")
    return FindBestResult(
        dataset=dataset,
        model=model,
        choice=f"{params.trainer}__{params.plans}__{configuration}",
        cv_dice=0.8,
        cv_dice_postprocessed=0.8,
        holdout_dice=0.8,
        holdout_dice_per_label={"1": 0.8},
        promoted=params.promote != "never",
        is_champion=params.promote != "never",
        card=str(spec.workspace.model_root(model) / dataset / MODEL_CARD),
        already_done=False,
    )


def _predicted(params: PredictParams) -> PredictResult:
    dataset = _full_name(params.dataset)
    return PredictResult(
        dataset=dataset,
        model=params.model or _model(dataset),
        output=params.output,
        predictions=f"{params.output}/{PREDICTIONS}",
        predicted=1,
        already_done=0,
        failed=[],
        not_predicted=[],
        empty=False,
        flagged=0,
        dice=None,
        part=params.part,
        parts=params.parts,
    )


def _full_name(dataset: str | int) -> str:
    return f"Dataset{int(dataset):03d}_Fake" if str(dataset).isdigit() else str(dataset)


def _version(dataset: str) -> str:
    return content_hash(["version", dataset])


def _model(dataset: str) -> str:
    return content_hash(["model", dataset])
