"""Jobs that only pretend: a backend for tests of DAGs, which writes real job directories and needs neither nnU-Net nor a GPU."""

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
from nnunet_jobs.contract.storage.files import content_hash, locked

_BEAT_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeOutcome:
    """What an attempt does.

    Attributes:
        result: Result of the step; one that looks like the real step's when None.
        failure: Fail with this class instead.
        message: Message of the failure.
        records: Progress to report.
        seconds: Duration in seconds; with 0 the attempt ends within ``submit``.
        forever: Whether the attempt goes on until it is cancelled.
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

    Args:
        outcomes: For each step name, an outcome for every attempt, or a list of them for one attempt after the other
            (the last one repeats).
        script: Called with the specification and the attempt's number. Steps that neither names succeed.

    Outcomes that take no time end within ``submit``; the others run in a daemon thread and are lost when the process ends.
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
    """Do what the runner does, in short: take the lock, record phase, heartbeat and progress, obey requests, write the outcome."""
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
    """A result with the keys of the real step's, so that tasks downstream find what they template on."""
    params: dict[str, Any] = spec.step_params().to_json()
    named = params.get("dataset") or next(iter(params.get("datasets") or [1]), 1)
    dataset = f"Dataset{named:03d}_Fake" if isinstance(named, int) else str(named)
    version = content_hash(["version", dataset])
    model = params.get("model") or content_hash(["model", dataset])
    if spec.step == "register":
        dataset = f"Dataset{params['dataset_id']:03d}_{params['name']}"
        return {
            "dataset": dataset, "dataset_id": params["dataset_id"], "hash": content_hash(dataset), "training_hash": content_hash([dataset]),
            "train": 9, "holdout": 1, "test": 0, "added": 10, "changed": 0, "removed": 0, "already_done": False,
            "path": str(spec.workspace.raw_dataset(dataset)),
        }  # fmt: skip
    if spec.step == "preprocess":
        one = {
            "dataset": dataset, "version": version, "path": str(spec.workspace.preprocessed_root(version)),
            "plans": params["plans"] or "nnUNetPlans",
            "configurations": params["configurations"], "folds": params["folds"], "cases": 9, "computed": 9, "linked": 0,
            "replanned": True, "reason": "first plans", "already_done": False,
        }  # fmt: skip
        return {**{key: one[key] for key in ("dataset", "version", "plans", "configurations", "folds")}, "datasets": [one]}
    if spec.step == "train":
        return {
            "dataset": dataset, "version": params["version"] or version, "model": model, "trainer": params["trainer"],
            "plans": params["plans"], "configuration": params["configuration"], "fold": params["fold"],
            "path": str(spec.workspace.model_root(model)), "dice": 0.8,
            "dice_per_label": {"1": 0.8}, "epochs": params["epochs"] or 1000, "resumed_from": None, "already_done": False, "seconds": 0.0,
        }  # fmt: skip
    if spec.step == "find_best_config":
        return {
            "dataset": dataset, "model": model, "choice": {"configurations": params["configurations"] or ["2d"]}, "cv_dice": 0.8,
            "cv_dice_postprocessed": 0.8, "holdout_dice": 0.8, "holdout_dice_per_label": {"1": 0.8},
            "promoted": params["promote"] != "never", "is_champion": params["promote"] != "never",
            "card": str(spec.workspace.model_root(model) / dataset / "model.json"), "already_done": False,
        }  # fmt: skip
    return {
        "dataset": dataset, "model": model, "output": params["output"], "predictions": f"{params['output']}/predictions.json",
        "predicted": 1, "already_done": 0, "failed": [], "flagged": 0, "part": params["part"], "parts": params["parts"],
    }  # fmt: skip
